"""Language modelling: next tokens are predicted, and perplexity is the score.

An example is a row of token ids. Perplexity follows the field's convention: one stream of tokens, a sliding window,
every token scored once. Windows of `context` tokens start every `stride` tokens, and a window scores only the tokens
that no earlier one has scored. So every token but those of the first window has at least context - stride tokens before
it. The result is exp of the mean negative log-likelihood over the scored tokens. There is no padding.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.process.errors import UserError


@dataclass(frozen=True)
class Language:
    """The task of language modelling, an implementation of `stages.core.tasks.interface.Task`.

    Its score is the perplexity with windows of `context` tokens, in batches of `batch_size`.
    """

    context: int
    stride: int
    batch_size: int = 1

    def outputs(self, model: Any, examples: Tensor, hidden_states: bool = False) -> Any:
        """The model's outputs for token ids, int64, (n, length)."""
        return model(examples, use_cache=False, output_hidden_states=hidden_states)

    def loss(self, outputs: Any, examples: Tensor) -> Tensor:
        """The next-token loss."""
        return next_token_loss(outputs.logits, examples)

    def score(self, model: Any, held_out: Tensor, watch: Callable[[Iterable], Iterable] = iter) -> float:
        """The perplexity of a stream of token ids, int64, (tokens,)."""
        return perplexity(model, held_out, self.context, self.stride, self.batch_size, watch)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy in nats of the next tokens: logits (n, length, vocabulary) for ids (n, length)."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def spans(length: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, end, first scored position) of each window over `length` tokens.

    A window cannot score its own first token. So the first tokens of windows that do not overlap are not scored.
    """
    found, scored = [], 0
    for begin in range(0, length, stride):
        end, first = min(begin + context, length), max(scored, begin + 1)
        if end > first:
            found.append((begin, end, first))
            scored = end
    return found


@torch.no_grad()
def perplexity(
    model: Any,
    tokens: Tensor,
    context: int,
    stride: int,
    batch_size: int = 1,
    watch: Callable[[Iterable], Iterable] = iter,
) -> float:
    """The perplexity of `tokens` (int64, (length,)), computed on the model's device.

    `watch` may wrap the batches in a progress bar. Raises UserError for fewer than two tokens, and where the result is
    not finite, with the range of the tokens.
    """
    if len(tokens) < 2:
        raise UserError(f"perplexity needs at least 2 tokens, the text has {len(tokens)}")
    device, windows = next(model.parameters()).device, spans(len(tokens), context, stride)
    total, count = 0.0, 0
    for batch in watch(list(_batches(windows, batch_size))):
        ids = torch.stack([tokens[begin:end] for begin, end, _ in batch]).to(device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
        for (begin, end, first), row in zip(batch, losses):
            total += row[first - begin - 1 :].sum().item()
            count += end - first
        if not math.isfinite(total):
            raise UserError(f"the loss is not finite in tokens {batch[0][0]} to {batch[-1][1]}: the model is broken")
    mean = total / count
    if mean > 700:
        raise UserError(f"the mean loss is {mean:.0f} nats: perplexity has no float64 value, the model is broken")
    return math.exp(mean)


def _batches(windows: list[tuple[int, int, int]], size: int) -> Iterable[list[tuple[int, int, int]]]:
    """Runs of at most `size` windows of equal length, in order."""
    batch: list[tuple[int, int, int]] = []
    for window in windows:
        if batch and (len(batch) == size or window[1] - window[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(window)
    yield batch
