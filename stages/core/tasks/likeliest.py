"""How far a model's next-token distributions are from another's: the KL divergence, on the likeliest tokens.

For each scored token the KEPT likeliest next tokens are told apart, and all others count as one, so the result never
exceeds the divergence over the whole vocabulary. Where few words of a large vocabulary are among the likeliest of any
token, the others are left out of both models' heads, and the divergence among the words is weighed with their
probability: with 262,144 words the head is most of a forward pass.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.process.errors import UserError

REFERENCE = 2**28  # bytes of probabilities that `answers` keeps, at least one token for each scored one
KEPT = 256  # of them for each scored token: with all 2,048 of a small model a divergence is at most 2% more
FEW = 0.5  # of the vocabulary: with more words than these among the likeliest, none is left out

Scored = Callable[[], Iterable[Tensor]]  # runs a model, and gives for each batch the logits, (n, vocabulary)


@dataclass(frozen=True)
class Answers:
    """What a model answers to scored tokens.

    words: rows of the head that are compared, int64, rising; None for all. batches: for each batch the likeliest next
    tokens, int32, (n, kept), numbered as `words` are; the logs of their probabilities among the words; and the
    probability of all words, (n, 1).
    """

    words: Tensor | None
    batches: list[tuple[Tensor, Tensor, Tensor]]


def answers(model: Any, scored: Scored, count: int) -> Answers:
    """A model's answers. count: scored tokens, of which each has as many next tokens as REFERENCE bytes hold."""
    most, found = max(1, min(KEPT, int(REFERENCE / (8 * count)))), []
    for logits in scored():
        logs, tokens = logits.log_softmax(-1).topk(min(most, logits.shape[-1]), dim=-1)
        found.append((tokens.int(), logs, torch.ones_like(logs[:, :1])))
    words = torch.cat([tokens.flatten() for tokens, _, _ in found]).unique().long()
    if len(words) > FEW * logits.shape[-1]:
        return Answers(None, found)
    with narrowed(model, words):
        return Answers(words, [_among(words, *each) for each in zip(found, scored(), strict=True)])


def _among(words: Tensor, kept: tuple[Tensor, ...], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of `Answers.batches` for these words, by the batch for all and the words' logits."""
    tokens, logs, _ = kept
    places = torch.searchsorted(words, tokens.long())
    own = logits.log_softmax(-1).gather(-1, places)
    return places.int(), own, (logs[:, :1] - own[:, :1]).exp()


def divergence(model: Any, scored: Scored, reference: Answers) -> float:
    """The mean of KL(reference || model) in nats, at least 0. Raises UserError where it is not finite."""
    total, count = 0.0, 0
    with narrowed(model, reference.words):
        for (tokens, logs, mass), logits in zip(reference.batches, scored(), strict=True):
            chosen, before = tokens.long(), logs.double()
            whole = logits.logsumexp(-1)
            after = logits.gather(-1, chosen).double() - whole.double()[:, None]
            total += (mass * before.exp() * (before - after)).sum().item()
            if chosen.shape[-1] < logits.shape[-1]:
                other = logits.scatter_(-1, chosen, -math.inf).logsumexp(-1) - whole
                left = (1 - before.exp().sum(-1)).clamp_min(1e-12)
                total += (mass[:, 0] * left * (left.log() - other.double())).sum().item()
            count += len(logits)
    if not math.isfinite(total):
        raise UserError("the divergence is not finite: the model is broken")
    return max(0.0, total / count)


@contextmanager
def narrowed(model: Any, words: Tensor | None) -> Iterator[None]:
    """Within the context the model answers with the logits of these words alone, in their order; None: of all."""
    if words is None:
        yield
        return
    head = model.get_output_embeddings()
    whole = dict(head.named_parameters(recurse=False))
    try:
        # A tied embedding has a name of its own for the same parameter, and stays whole.
        for name, parameter in whole.items():
            setattr(head, name, nn.Parameter(parameter[words.to(parameter.device)], requires_grad=False))
        yield
    finally:
        for name, parameter in whole.items():
            setattr(head, name, parameter)
