"""Summaries as continuations of a prompt: prompts, the loss on a summary, generation by beam search, tables."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture.tokens import end_tokens, pad_token
from stages.core.evaluation import beams
from stages.core.process.artifacts import parquet_reader, parquet_writer
from stages.core.process.errors import UserError


def prompts(
    tokenizer: Any, articles: Iterable[str], form: str, most: int, start: Sequence[int] = ()
) -> list[list[int]]:
    """Each article as the token ids of `form`, with the article cut so that the prompt has at most `most` tokens.

    start: what every prompt begins with. Raises UserError where no token of the article would be left.
    """
    before, after = (_ids(tokenizer, part) for part in form.split("{article}"))
    before = [*start, *before]
    room = most - len(before) - len(after)
    if room < 1:
        raise UserError(f"params.yaml: summarize.context leaves no room for an article: {room} tokens")
    return [before + _ids(tokenizer, article)[:room] + after for article in articles]


def targets(tokenizer: Any, summaries: Iterable[str], ends: Sequence[int], most: int) -> list[list[int]]:
    """Each summary as the token ids after a prompt, at most `most` with the first of `ends`, if there is one."""
    end = list(ends[:1])
    return [_ids(tokenizer, f" {summary.strip()}")[: most - len(end)] + end for summary in summaries]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def target_tokens(targets: Sequence[Sequence[int]]) -> Callable[[Tensor], int]:
    """How many tokens the mean of `summary_loss` is over, for `training.loop.train`."""
    return lambda batch: max(1, sum(len(targets[i]) for i in batch.tolist()))


def summary_loss(
    model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An objective for `training.loop.train`: the mean cross-entropy in nats over the tokens of a batch's targets.

    Prompts and padding do not count. Padding is on the right, where causal attention never looks: it needs no mask.
    """

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        rows = [(prompts[i], targets[i]) for i in batch.tolist()]
        length = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        labels = torch.full_like(ids, -100)
        for row, (prompt, target) in enumerate(rows):
            whole = len(prompt) + len(target)
            ids[row, :whole] = torch.tensor([*prompt, *target])
            labels[row, len(prompt) : whole] = torch.tensor(target)
        device = next(model.parameters()).device
        chosen = labels[:, 1:].to(device) != -100
        with _head_on(model, chosen):
            logits = model(ids.to(device), use_cache=False).logits
        loss = functional.cross_entropy(logits.float(), labels[:, 1:].to(device)[chosen])
        return loss, loss

    return objective


@contextmanager
def _head_on(model: Any, chosen: Tensor) -> Iterator[None]:
    """Within the context the model answers with the logits of these positions alone, (n, vocabulary).

    Logits of prompts would be most of the work. What a family does to its logits after the head it does to these.
    chosen: bool, (rows, length - 1); the last position has nothing to predict.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, given: (given[0][:, :-1][chosen],))
    try:
        yield
    finally:
        hook.remove()


@torch.inference_mode()
def write(
    model: Any, prompts: Sequence[Sequence[int]], spec: Any, new_tokens: int, no_repeat_over: str, watch=iter
) -> list[list[int]]:
    """The token ids that the model generates after each prompt by beam search, up to its end token or `new_tokens`.

    spec: a `Summarize` section. Prompts are padded on the left and attention does not see the padding, so a summary
    does not depend on its batch.
    """
    from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

    device, pad = next(model.parameters()).device, pad_token(model)
    ends = set(end_tokens(model))
    # Prompts of similar length share a batch, which needs least padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in watch(range(0, len(order), spec.batch_size)):
        batch = order[start : start + spec.batch_size]
        length = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[pad] * (length - len(prompts[i])) + list(prompts[i]) for i in batch], device=device)
        seen = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in batch], device=device)
        options: dict[str, Any] = {}
        if length > 1:
            options["past_key_values"] = beams.read(model, ids, seen, spec.beams, new_tokens)
        if spec.no_repeat_ngram and no_repeat_over == "all":
            options["no_repeat_ngram_size"] = spec.no_repeat_ngram
        elif spec.no_repeat_ngram:
            rule = NoRepeatNGramLogitsProcessor(spec.no_repeat_ngram)
            options["logits_processor"] = LogitsProcessorList([_After(rule, length)])
        written = model.generate(
            ids,
            attention_mask=seen,
            num_beams=spec.beams,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            **options,
        )
        for i, row in zip(batch, written[:, length:].tolist()):
            found[i] = list(takewhile(lambda token: token not in ends, row))
    return found


class _After:
    """A logits processor that sees only the tokens after the first `length`."""

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor], length: int):
        self.rule, self.length = rule, length

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return self.rule(ids[:, self.length :], scores)


def read(path: Path) -> list[list[str]]:
    """The articles and the summaries of a table."""
    with parquet_reader(path) as file:
        table = file.read()
    return [table[name].to_pylist() for name in ("article", "summary")]


def keep(path: Path, references: list[str], found: list[str], leads: list[str]) -> None:
    """Write a parquet table, one row for each article: article, reference, prediction, lead3."""
    import pyarrow as pa

    columns = {"article": list(range(len(found))), "reference": references, "prediction": found, "lead3": leads}
    kinds = [pa.int64(), pa.string(), pa.string(), pa.string()]
    table = pa.table(columns, schema=pa.schema(zip(columns, kinds)))
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
