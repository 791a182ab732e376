"""Training on packed text: the loop that recovers a variant, and that once made the embedded model."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.errors import UserError


def train(
    model: nn.Module,
    rows: Tensor,
    parameters: list[nn.Parameter],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    weight_decay: float,
    clip: float,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    watch: Callable[[Any], Any] = iter,
) -> list[dict[str, float]]:
    """Minimise the mean next-token loss over `rows` (int64, (n, length)) plus `penalty()`, in place.

    AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) on `parameters` only, decay on matrices only; linear warm-up
    over a share `warmup` of the steps, then cosine to zero; gradients clipped to norm `clip`. Every epoch sees
    every row once in a seeded order. Returns {step, tokens, loss} per step, `loss` being the next-token loss
    alone. Raises UserError with the step where the loss is not finite. The model is left in evaluation mode.
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    chosen = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    steps = epochs * math.ceil(len(rows) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, warmup))
    curve, seen = [], 0
    model.train()
    batches = watch(list(_order(len(rows), epochs, batch_size, seed)))
    show = getattr(batches, "set_postfix_str", lambda text, refresh: None)  # a progress bar can carry the loss
    for step, batch in enumerate(batches, start=1):
        ids = rows[batch].to(device)
        logits = model(ids, use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        objective = loss if penalty is None else loss + penalty()
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not math.isfinite(objective.item()) or not math.isfinite(norm.item()):
            raise UserError(
                f"training diverged at step {step} of {steps} (loss {loss.item()}): lower the learning rate "
                f"(it is {learning_rate})"
            )
        optimizer.step()
        schedule.step()
        seen += ids.numel()
        curve.append({"step": step, "tokens": seen, "loss": loss.item()})
        show(f"loss {loss.item():.3f}", refresh=False)
    model.eval()
    return curve


def _rate(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step (from 0)."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _order(rows: int, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of each batch: every epoch a fresh seeded shuffle."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).split(batch_size)
