"""Summaries by continuation: the prompt, the loss on what follows it, beams that write it, and the tables of both."""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture.tokens import end_tokens, pad_token
from stages.core.process.artifacts import parquet_reader, parquet_writer
from stages.core.process.errors import UserError


def prompts(tokenizer: Any, articles: Iterable[str], form: str, most: int) -> list[list[int]]:
    """Each article as token ids within `form`, cut so that the whole has at most `most` tokens.

    Only the article is cut, never what stands around it. Raises UserError where nothing of it would be left.
    """
    before, after = (_ids(tokenizer, part) for part in form.split("{article}"))
    room = most - len(before) - len(after)
    if room < 1:
        raise UserError(f"params.yaml: summarize.context leaves no room for an article: {room} tokens")
    return [before + _ids(tokenizer, article)[:room] + after for article in articles]


def targets(tokenizer: Any, summaries: Iterable[str], ends: Sequence[int], most: int) -> list[list[int]]:
    """Each summary as the token ids that follow a prompt, at most `most` with the first of `ends`, if there is one."""
    end = list(ends[:1])
    return [_ids(tokenizer, f" {summary.strip()}")[: most - len(end)] + end for summary in summaries]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def summary_loss(
    model: Any, asked: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An objective for `training.train`: the mean cross-entropy over the tokens of a batch's `wanted`.

    Prompts and padding (on the right, hidden from attention) are no targets.
    """

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        rows = [(asked[i], wanted[i]) for i in batch.tolist()]
        length = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        labels, seen = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (prompt, target) in enumerate(rows):
            whole = len(prompt) + len(target)
            ids[row, :whole] = torch.tensor([*prompt, *target])
            labels[row, len(prompt) : whole] = torch.tensor(target)
            seen[row, :whole] = 1
        device = next(model.parameters()).device
        states = model.base_model(ids.to(device), attention_mask=seen.to(device), use_cache=False).last_hidden_state
        chosen = labels[:, 1:].to(device) != -100
        # Logits of a prompt would be most of the work, and nothing reads them.
        logits = model.get_output_embeddings()(states[:, :-1][chosen])
        loss = functional.cross_entropy(logits.float(), labels[:, 1:].to(device)[chosen])
        return loss, loss

    return objective


@torch.no_grad()
def write(
    model: Any, asked: Sequence[Sequence[int]], spec: Any, new_tokens: int, no_repeat_over: str, watch=iter
) -> list[list[int]]:
    """What the model writes after each prompt, by beam search, up to its end token or `new_tokens`.

    `spec` is a `Summarize` section. Prompts of a batch are padded on the left, hidden from attention, so that no
    batch changes a summary.
    """
    from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

    device, pad = next(model.parameters()).device, pad_token(model)
    ends = set(end_tokens(model))
    # Batches of like lengths waste least on padding; answers go back to their places.
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    found: list[list[int]] = [[] for _ in asked]
    for start in watch(range(0, len(order), spec.batch_size)):
        places = order[start : start + spec.batch_size]
        length = max(len(asked[i]) for i in places)
        ids = torch.tensor([[pad] * (length - len(asked[i])) + list(asked[i]) for i in places], device=device)
        seen = torch.tensor([[0] * (length - len(asked[i])) + [1] * len(asked[i]) for i in places], device=device)
        options: dict[str, Any] = {}
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
        for place, row in zip(places, written[:, length:].tolist()):
            found[place] = list(takewhile(lambda token: token not in ends, row))
    return found


class _After:
    """A rule of generation that sees only what follows the first `length` tokens."""

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
    """A parquet table, one row an article, so that anyone can count again: article, reference, prediction, lead3."""
    import pyarrow as pa

    columns = {"article": list(range(len(found))), "reference": references, "prediction": found, "lead3": leads}
    table = pa.table(columns)
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
