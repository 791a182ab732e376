"""Language modelling: next tokens are predicted, and perplexity is the score.

An example is a row of token ids. Perplexity follows the field's convention: one stream of tokens, a sliding window,
every token scored once. Windows of `context` tokens start every `stride` tokens, and a window scores only the tokens
that no earlier one has scored. Where the model reads a start token before any text, each window begins with it. So
every token but those of the first window has at least context - stride tokens before it. The result is exp of the mean
negative log-likelihood over the scored tokens. There is no padding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture import opening
from stages.core.architecture.tokens import pad_token
from stages.core.architecture.view import ModelView
from stages.core.process.errors import UserError
from stages.core.settings.profiles import Extract, Generate, Latency, SeedPerplexity
from stages.core.settings.trainings import Finetune
from stages.core.tasks import likeliest, notes, timing
from stages.core.tasks.interface import CalibrationRows, Measured
from stages.core.tasks.losses import exp_mean
from stages.core.text import corpus
from stages.core.text.tokenizer import open_tokenizer, start_tokens


@dataclass(frozen=True)
class Language:
    """The task of language modelling, an implementation of `stages.core.tasks.interface.Task`.

    Its score is the perplexity with windows of `context` tokens, in batches of `batch_size`.
    """

    context: int
    stride: int
    batch_size: int = 1
    seed_protocol: SeedPerplexity | None = None

    unit = "tokens"
    block = 256  # of so many tokens in a row the losses count as one draw: what is near is alike

    @classmethod
    def by(cls, section: Any) -> Self:
        """The task with a section's windows; they do not overlap unless it has a `stride`."""
        context = getattr(section, "context", None) or section.sequence_length
        stride = getattr(section, "stride", context)
        return cls(context, stride, section.batch_size, getattr(section, "seed_protocol", None))

    @classmethod
    def calibration(cls, view: ModelView, table: Path, section: Extract) -> CalibrationRows:
        """Packed sequences with the tokens of the larger of the two budgets."""
        text, start, length = corpus.read_tokens(table), corpus.read_start(table), section.sequence_length
        key = "max_tokens" if section.max_tokens >= section.moment_tokens else "moment_tokens"
        needed = -(-getattr(section, key) // length) * length
        if len(text) < needed:
            raise UserError(
                f"params.yaml: extract.{key} = {getattr(section, key)} takes {needed:,} tokens in sequences of "
                f"{length}: the train split has only {len(text):,}"
            )
        batches = list(corpus.pack(text[:needed], length, start).split(section.batch_size))
        return CalibrationRows(
            batches,
            {"rows": torch.cat(batches)[: -(-section.moment_tokens // length)]},
            {
                "sha256": corpus.digest(batches),
                "activation_tokens": section.max_tokens,
                "moment_tokens": section.moment_tokens,
                "sequence_length": length,
            },
        )

    @classmethod
    def training(cls, table: Path, section: Finetune) -> Tensor:
        """Packed sequences, int64, (n, length)."""
        text = corpus.read_stream(table, section.max_tokens)
        return corpus.pack(text.tokens, section.sequence_length, text.start)

    @classmethod
    def held_out(cls, table: Path, section: Any) -> corpus.Stream:
        """A stream of token ids."""
        return corpus.read_stream(table, section.max_tokens)

    @classmethod
    def other(cls, table: Path, section: Any) -> corpus.Stream | None:
        """A stream of token ids, or None where the table has none."""
        text = corpus.read_stream(table, section.max_tokens)
        return text if len(text) else None

    @classmethod
    def units(cls, examples: Tensor) -> int:
        """The tokens of a sequence."""
        return examples.shape[1]

    def inputs(self, batch: Tensor) -> Tensor:
        """The token ids themselves."""
        return batch

    def outputs(self, model: Any, batch: Tensor, hidden_states: bool = False) -> Any:
        """The model's outputs for token ids, int64, (n, length)."""
        return model(batch, use_cache=False, output_hidden_states=hidden_states)

    def loss(self, outputs: Any, batch: Tensor) -> Tensor:
        """The next-token loss."""
        return next_token_loss(outputs.logits, batch)

    def score(
        self, model: Any, held_out: corpus.Stream | Tensor, watch: Callable[[Iterable], Iterable] = iter
    ) -> float:
        """The perplexity of a stream of token ids, which may be a plain tensor: int64, (tokens,)."""
        return exp_mean(self._losses(model, held_out, watch))

    def losses(
        self, model: Any, held_out: corpus.Stream | Tensor, watch: Callable[[Iterable], Iterable] = iter
    ) -> np.ndarray:
        """The cross-entropy of every token that is scored."""
        return torch.cat([each.cpu() for each in self._losses(model, held_out, watch)]).numpy()

    def _losses(
        self, model: Any, held_out: corpus.Stream | Tensor, watch: Callable[[Iterable], Iterable]
    ) -> Iterator[Tensor]:
        text = held_out if isinstance(held_out, corpus.Stream) else corpus.Stream(held_out)
        return losses(model, text.tokens, self.context, self.stride, self.batch_size, watch, text.start)

    @torch.no_grad()
    def reference(self, model: Any, held_out: corpus.Stream | Tensor) -> likeliest.Answers:
        """The likeliest next tokens and their probabilities, see `stages.core.tasks.likeliest`."""
        text = held_out if isinstance(held_out, corpus.Stream) else corpus.Stream(held_out)
        return likeliest.answers(model, partial(self._logits, model, text), len(text))

    @torch.no_grad()
    def divergence(self, model: Any, held_out: corpus.Stream | Tensor, reference: likeliest.Answers) -> float:
        """The mean of KL(reference || model) over the next tokens that `score` counts, in nats, at least 0.

        It never exceeds that for the whole vocabulary, see `stages.core.tasks.likeliest`.
        """
        text = held_out if isinstance(held_out, corpus.Stream) else corpus.Stream(held_out)
        return likeliest.divergence(model, partial(self._logits, model, text), reference)

    def _logits(self, model: Any, text: corpus.Stream) -> Iterator[Tensor]:
        """For each batch the logits (n, vocabulary) of the tokens that are scored."""
        before = 0 if text.start is None else 1
        for batch, logits, _ in forward(model, text.tokens, self.context, self.stride, self.batch_size, text.start):
            scored = [slice(first - begin - 1 + before, None) for begin, _, first in batch]
            yield torch.cat([row[part] for row, part in zip(logits, scored)])

    def measure(
        self, model: Any, held_out: corpus.Stream, others: Path, watch: Callable[[Iterable], Iterable] = iter
    ) -> Measured:
        """The perplexity and, by the notes' protocol if it is asked for, that of the rows in the table `others`."""
        found = [each.cpu() for each in self._losses(model, held_out, watch)]
        figures = {"perplexity": exp_mean(found)}
        if protocol := self.seed_protocol:
            rows = corpus.read_rows(others, protocol.rows)
            figures["seed"] = notes.padded_perplexity(model, rows, protocol.length, protocol.batch_size)
        return Measured(figures, torch.cat(found).numpy())

    @classmethod
    def external(cls, model: str, revision: str | None, original: ModelView, processor: Path) -> Any:
        """Another model over the same tokens."""
        return opening.open_external(model, revision, open_tokenizer(processor), original.model.config.vocab_size)

    @classmethod
    @torch.inference_mode()
    def samples(
        cls, model: Any, processor: Path, table: Path, section: Generate,
        watch: Callable[[Iterable], Iterable] = iter,
    ) -> list[dict[str, str]]:  # fmt: skip
        """Each prompt with its continuation, greedy and sampled once with a seed."""
        tokenizer, device, found = open_tokenizer(processor), next(model.parameters()).device, []
        ways = {
            "greedy": {"do_sample": False},
            "sampled": {"do_sample": True, "temperature": section.temperature, "top_k": section.top_k},
        }
        for prompt in watch(section.prompts):
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([start_tokens(tokenizer) + ids], device=device)
            opening.check_fits(model, f"prompt {prompt!r} + generate.new_tokens", ids.shape[1] + section.new_tokens)
            for way, options in ways.items():
                torch.manual_seed(section.seed)
                written = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=section.new_tokens,
                    pad_token_id=pad_token(model),
                    **options,
                )
                text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
                found.append({"way": way, "prompt": prompt, "continuation": text})
        return found

    @classmethod
    def time(
        cls, models: dict[str, Any], table: Path, section: Latency, device: Any,
        watch: Callable[[Iterable], Iterable] = iter,
    ) -> dict[str, Any]:  # fmt: skip
        """Prefill and decoding after the head of the test split; the speed-up is that of both together."""
        prompt = corpus.pack(corpus.read_tokens(table, section.prompt_tokens), section.prompt_tokens).to(device)
        turns = timing.turns(models, prompt, section.new_tokens, section.warmup, section.repeats, watch)
        found = {name: timing.summary(rows) for name, rows in turns.items()}
        extra = {}
        if protocol := section.seed_protocol:
            start = corpus.read_tokens(table, protocol.prompt_tokens)[None].to(device)
            extra["seed_ms"] = notes.generation_ms(models["variant"], start, protocol.length, protocol.repeats)
        return {
            **found["variant"],
            "original_prefill_ms": found["original"]["prefill_ms"],
            "original_decode_ms_per_token": found["original"]["decode_ms_per_token"],
            "speedup": timing.speedup(turns["original"], turns["variant"], section.new_tokens),
            **extra,
        }


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy in nats of the next tokens: logits (n, length, vocabulary) for ids (n, length)."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def spans(length: int, context: int, stride: int, before: int = 0) -> list[tuple[int, int, int]]:
    """(begin, end, first scored position) of each window over `length` tokens. before: tokens that precede a window.

    A window that nothing precedes cannot score its own first token. So the first tokens of windows that do not overlap
    are not scored.
    """
    found, scored = [], 0
    for begin in range(0, length, stride):
        end, first = min(begin + context, length), max(scored, begin if before else begin + 1)
        if end > first:
            found.append((begin, end, first))
            scored = end
    return found


def perplexity(model: Any, tokens: Tensor, context: int, stride: int, *options: Any, **named: Any) -> float:
    """exp of the mean of `losses`, which has the same parameters and raises the same errors."""
    return exp_mean(losses(model, tokens, context, stride, *options, **named))


@torch.no_grad()
def losses(
    model: Any,
    tokens: Tensor,
    context: int,
    stride: int,
    batch_size: int = 1,
    watch: Callable[[Iterable], Iterable] = iter,
    start: int | None = None,
) -> Iterator[Tensor]:
    """For each window the cross-entropies in nats of the tokens that it scores, float64, on the model's device.

    tokens: int64, (length,). Where there is a `start` token, every window begins with it, and `context` counts it. It
    is not scored. `watch` may wrap the batches in a progress bar. Raises UserError for fewer than two tokens, and where
    a loss is not finite, with the range of the tokens.
    """
    before = 0 if start is None else 1
    for batch, logits, ids in forward(model, tokens, context, stride, batch_size, start, watch):
        found = functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none").double()
        scored = [row[first - begin - 1 + before :] for (begin, _, first), row in zip(batch, found)]
        if not torch.cat(scored).isfinite().all():
            raise UserError(f"the loss is not finite in tokens {batch[0][0]} to {batch[-1][1]}: the model is broken")
        yield from scored


def forward(
    model: Any,
    tokens: Tensor,
    context: int,
    stride: int,
    batch_size: int = 1,
    start: int | None = None,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[tuple[list[tuple[int, int, int]], Tensor, Tensor]]:
    """For each batch its windows, as `spans` has them, the logits, float32, (windows, length, vocabulary), and the ids
    of the tokens that they predict, (windows, length), on the model's device.
    """
    if len(tokens) < 2:
        raise UserError(f"perplexity needs at least 2 tokens, the text has {len(tokens)}")
    before = tokens[:0] if start is None else tokens.new_tensor([start])
    room = context - len(before)
    device, windows = next(model.parameters()).device, spans(len(tokens), room, min(stride, room), len(before))
    for batch in watch(list(_batches(windows, batch_size))):
        ids = torch.stack([torch.cat([before, tokens[begin:end]]) for begin, end, _ in batch]).to(device)
        yield batch, model(ids, use_cache=False).logits[:, :-1].float(), ids[:, 1:]


def _batches(windows: list[tuple[int, int, int]], size: int) -> Iterable[list[tuple[int, int, int]]]:
    """Runs of at most `size` windows of equal length, in order."""
    batch: list[tuple[int, int, int]] = []
    for window in windows:
        if batch and (len(batch) == size or window[1] - window[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(window)
    yield batch
