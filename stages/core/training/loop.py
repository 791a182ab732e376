"""The training loop, for recoveries, task heads and the bundled model."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.process.errors import UserError
from stages.core.settings.trainings import Schedule
from stages.core.training.resuming import Unfinished

SORTED = 50  # batches: enough for rows of like length to meet, few enough for others to meet in the next epoch


Rates = Sequence[tuple[list[nn.Parameter], float]]  # parameters and their highest learning rate


@dataclass(frozen=True)
class History:
    """The record of a training.

    curve: {step, examples, loss} of every step; `examples` counts all that have been seen.
    validation: {step, examples, value} of every evaluation on held-out data, the first of them before any step.
    """

    curve: list[dict[str, float]]
    validation: list[dict[str, float]]


@dataclass(frozen=True)
class Start:
    """What a model was before an earlier phase of its training: its validation value, and its parameters.

    examples: those that the earlier phase has seen.
    """

    value: float
    kept: list[Tensor]
    examples: int


def start_of(model: nn.Module, rates: Rates, validate: Callable[[], float], examples: int) -> Start:
    """What a model is now. rates: of the training that takes it for a start; examples: of the phase before that."""
    best = _BestState(model, _trained(model, rates), validate)
    best.evaluate(0, 0)
    return Start(best.evaluations[0]["value"], best.kept, examples)


def train(
    model: nn.Module,
    examples: int,
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    rates: Rates,
    recipe: Schedule,
    seed: int,
    *,
    validate: Callable[[], float] | None = None,
    times: int = 1,
    lengths: Tensor | None = None,
    weight: Callable[[Tensor], float] = len,
    autocast: AbstractContextManager | None = None,
    watch: Callable[[Any], Any] = iter,
    unfinished: Unfinished | None = None,
    start: Start | None = None,
) -> History:
    """Train a model in place by minimising an objective over numbered examples; the model ends in evaluation mode.

    objective(batch): for example numbers, int64, (n,), the loss to report and the loss to minimise, means over the
    batch. weight(batch): over how many things that mean is, by default examples; so the parts of a step add up to the
    mean over all of it. rates: pairs of parameters and their highest learning rate; all other parameters are frozen.
    The optimizer is AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with weight decay on matrices only, a linear
    warm-up, the recipe's schedule, and gradients clipped by their norm. Every epoch sees every example once in a seeded
    order.

    validate: gives a value, lower is better, at the start and at `times` evenly spaced steps. The model ends with the
    parameters of the lowest value, those of `start` included. unfinished: where the state is written from time to time.
    A training that finds a state there continues it; on the CPU it ends with the same bits as an uninterrupted one,
    dropout included.

    lengths: int64, (examples,). With them each batch is of examples of like length, so that little is padded; which
    ones meet, and the order of the batches, change every epoch.

    Raises UserError with the step where a loss or a gradient is not finite.
    """
    torch.manual_seed(seed)
    parameters = [parameter for chosen, _ in rates for parameter in chosen]
    chosen = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    optimizer = torch.optim.AdamW(_groups(rates, recipe.weight_decay), betas=(0.9, 0.95), fused=True)
    batches = list(_order(examples, recipe.epochs, recipe.batch_size * recipe.accumulation, seed, lengths))
    best, before = _BestState(model, _trained(model, rates), validate, start), start.examples if start else 0
    curve = _load_state(unfinished, optimizer, best)
    if not curve:
        best.evaluate(0, before)
    context = autocast or nullcontext()
    model.train()
    shown = watch(batches[len(curve) :])
    show = getattr(shown, "set_postfix_str", _show_nothing)  # a progress bar can show the loss
    for step, batch in enumerate(shown, start=len(curve) + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * rate(recipe, step - 1, len(batches))
        optimizer.zero_grad(set_to_none=True)
        total, whole = 0.0, weight(batch)
        for part in batch.split(recipe.batch_size):
            with context:
                loss, minimised = objective(part)
            share = weight(part) / whole
            (minimised * share).backward()
            total += loss.item() * share
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
        if not math.isfinite(total) or not math.isfinite(norm.item()):
            highest = max(highest for _, highest in rates)
            raise UserError(
                f"training diverged at step {step} of {len(batches)} (loss {total}): lower the learning rate "
                f"(it is {highest})"
            )
        optimizer.step()
        seen = len(batch) + (curve[-1]["examples"] if curve else before)
        curve.append({"step": step, "examples": seen, "loss": total})
        show(f"loss {total:.3f}", refresh=False)
        if step * times // len(batches) > (step - 1) * times // len(batches):
            best.evaluate(step, seen)
        if unfinished and unfinished.due():
            _save_state(unfinished, optimizer, best, curve)
    best.restore()
    model.eval()
    return History(curve, best.evaluations)


def _show_nothing(text: str, refresh: bool) -> None:
    """What a plain iterable does with the text for a progress bar."""


def _trained(model: nn.Module, rates: Rates) -> list[Tensor]:
    """What a training changes of a model."""
    return [*(parameter for chosen, _ in rates for parameter in chosen), *_statistics(model)]


def _statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a training changes: what BatchNorm has counted."""
    return [
        tensor
        for module in model.modules()
        if getattr(module, "track_running_stats", False)
        for tensor in module.buffers(recurse=False)
    ]


class _BestState:
    """The trained parameters, and what a training counts, at the lowest validation value, and all evaluations."""

    def __init__(
        self,
        model: nn.Module,
        parameters: list[Tensor],
        validate: Callable[[], float] | None,
        start: Start | None = None,
    ):
        self.model, self.parameters, self.validate = model, parameters, validate
        self.evaluations: list[dict[str, float]] = [{"step": 0, "examples": 0, "value": start.value}] if start else []
        self.kept: list[Tensor] = start.kept if start else []

    def evaluate(self, step: int, examples: int) -> None:
        if self.validate is None:
            return
        self.model.eval()
        value = self.validate()
        self.model.train()
        if not self.evaluations or value < min(at["value"] for at in self.evaluations):
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
        self.evaluations.append({"step": step, "examples": examples, "value": value})

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, kept in zip(self.parameters, self.kept):
            parameter.copy_(kept)


def _save_state(unfinished: Unfinished, optimizer: torch.optim.Optimizer, best: _BestState, curve: list) -> None:
    """Write everything that the rest of a training depends on."""
    tensors = {f"parameter.{i}": parameter for i, parameter in enumerate(best.parameters)}
    tensors |= {f"kept.{i}": kept for i, kept in enumerate(best.kept)}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    # Only of the device in use: where the training continues, devices may be fewer or have other numbers.
    device = best.parameters[0].device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    unfinished.keep(len(curve), tensors, {"curve": curve, "evaluations": best.evaluations})


@torch.no_grad()
def _load_state(
    unfinished: Unfinished | None, optimizer: torch.optim.Optimizer, best: _BestState
) -> list[dict[str, float]]:
    """Restore, in place, what `_save_state` wrote; the curve so far, which is empty where there is no state."""
    found = unfinished.newest() if unfinished else None
    if found is None:
        return []
    tensors, progress = found
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, index, *name = key.split(".")
        if kind == "parameter":
            best.parameters[int(index)].copy_(value)
        elif kind == "optimizer":
            state.setdefault(int(index), {})[name[0]] = value
        elif kind == "random" and index == "cpu":
            torch.set_rng_state(value)
        elif kind == "random":
            torch.cuda.set_rng_state(value, best.parameters[0].device)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best.evaluations = progress["evaluations"]
    best.kept = (
        [tensors[f"kept.{i}"].to(parameter.device) for i, parameter in enumerate(best.parameters)]
        if best.evaluations
        else []
    )
    return progress["curve"]


def rate(recipe: Schedule, step: int, steps: int) -> float:
    """The learning rate at a step (from 0) of `steps`, as a share of the highest."""
    rising = max(1, round(recipe.warmup * steps))
    if step < rising:
        return (step + 1) / rising
    gone = (step - rising) / max(1, steps - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}[recipe.schedule]


def _groups(rates: Sequence[tuple[list[nn.Parameter], float]], decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: matrices with weight decay, vectors without."""
    return [
        {
            "params": [p for p in chosen if (p.ndim >= 2) == matrices],
            "highest": highest,
            "weight_decay": decay * matrices,
        }
        for chosen, highest in rates
        for matrices in (True, False)
    ]


def _order(examples: int, epochs: int, size: int, seed: int, lengths: Tensor | None = None) -> Iterator[Tensor]:
    """The example numbers of each step: a new seeded shuffle every epoch.

    With `lengths`, every SORTED batches of the shuffle are sorted by length together, and all batches shuffled again.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(examples, generator=generator)
        if lengths is None:
            yield from order.split(size)
            continue
        parts = (part[lengths[part].argsort(stable=True)] for part in order.split(SORTED * size))
        batches = [batch for part in parts for batch in part.split(size)]
        yield from (batches[number] for number in torch.randperm(len(batches), generator=generator).tolist())
