"""Perplexity and latency by the protocol of the research notes that this project grew out of.

The notes count padding as text in perplexity, and let a model stop early in latency, so neither figure is what its name
says. These two functions repeat that protocol only to reproduce the notes' published table beside the real figures.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture.tokens import pad_token
from stages.core.process.errors import UserError
from stages.core.tasks.timing import waiting


@torch.no_grad()
def padded_perplexity(model: Any, rows: Sequence[Sequence[int]], length: int, batch_size: int) -> float:
    """exp of the mean next-token loss over rows of token ids that are cut or padded to `length` tokens.

    Attention does not see the padding, but the loss counts it. Raises UserError where the loss is not finite or its
    exponential has no float64 value.
    """
    device, pad = next(model.parameters()).device, pad_token(model)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(rows), batch_size):
        cut = [list(row[:length]) for row in rows[start : start + batch_size]]
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in cut], device=device)
        seen = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in cut], device=device)
        logits = model(ids, attention_mask=seen, use_cache=False).logits[:, :-1].float()
        total += functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double().sum()
    mean = total.item() / (len(rows) * (length - 1))
    if not mean <= 700:
        raise UserError(f"the mean loss of the padded rows is {mean}: the model is broken")
    return float(torch.tensor(mean, dtype=torch.float64).exp())


@torch.no_grad()
def generation_ms(model: Any, prompt: Tensor, length: int, repeats: int) -> float:
    """The mean milliseconds of a greedy generation from `prompt` (int64, (1, n)) to `length` tokens in all.

    A model that generates its end token stops early, which makes it look faster.
    """
    synchronise = waiting(prompt.device)
    synchronise()
    begin = time.perf_counter()
    for _ in range(repeats):
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=length - prompt.shape[1],
            do_sample=False,
            pad_token_id=pad_token(model),
        )
    synchronise()
    return 1000 * (time.perf_counter() - begin) / repeats
