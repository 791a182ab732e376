"""Labelled texts: which are taken, how they become token rows, and the table that keeps them."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.process.artifacts import parquet_reader, parquet_writer
from stages.core.process.errors import UserError

Labelled = list[tuple[str, int]]


def balanced(rows: Labelled, most: int | None, seed: int, split: str) -> Labelled:
    """At most `most` rows in a seeded order, equally many of each label while they last.

    Raises UserError on a text without words, a negative label, a single label, or `most` below two rows a label.
    """
    for number, (text, label) in enumerate(rows):
        if not text.strip():
            raise UserError(f"reviews.source: row {number} of split {split} has no text")
        if label < 0 or label > 127:
            raise UserError(f"reviews.source: row {number} of split {split} has label {label}; allowed are 0 to 127")
    by_label: dict[int, Labelled] = {}
    for row in random.Random(seed).sample(rows, len(rows)):
        by_label.setdefault(row[1], []).append(row)
    if len(by_label) < 2:
        raise UserError(f"reviews.source: split {split} has only label {', '.join(map(str, by_label)) or 'none'}")
    share = len(rows) if most is None else most // len(by_label)
    if share < 2:
        raise UserError(f"params.yaml: reviews.max_{split} = {most}: at least {2 * len(by_label)} rows are needed")
    taken = [row for label in sorted(by_label) for row in by_label[label][:share]]
    return random.Random(seed + 1).sample(taken, len(taken))


def apart(train: Labelled, test: Labelled) -> Labelled:
    """The train rows whose texts are no test texts: public sets share some between their splits (IMDb does)."""
    held_out = {text for text, _ in test}
    return [(text, label) for text, label in train if text not in held_out]


def check(train: Labelled, test: Labelled) -> None:
    """Raise UserError where the test split has a label that the train split lacks, or labels have gaps."""
    labels = Counter(label for _, label in train)
    if unknown := {label for _, label in test} - labels.keys():
        raise UserError(f"reviews.source: label {min(unknown)} of the test split is not in the train split")
    if max(labels) >= len(labels):
        raise UserError(f"reviews.source: labels must be 0 to {len(labels) - 1} without gaps, not {sorted(labels)}")


def tokenise(
    tokenizer: Any, rows: Labelled, template: str, most: int, keep: str, start: Sequence[int] = ()
) -> list[np.ndarray]:
    """Each text, its head or tail cut to fit, inside the template: int32 ids, at most `most`, the template whole.

    start: what every row begins with.
    """
    before, after = (
        tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in template.split("{text}")
    )
    before = [*start, *before]
    room = most - len(before) - len(after)
    if room < 1:
        raise UserError(f"params.yaml: reviews.max_tokens = {most}: the template alone has {most - room} tokens")
    texts = tokenizer([text for text, _ in rows], add_special_tokens=False, verbose=False)["input_ids"]
    cut = slice(room) if keep == "head" else slice(-room, None)
    return [np.asarray(before + ids[cut] + after, dtype=np.int32) for ids in texts]


def write(path: Path, rows: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    """A parquet table, one row a text: `token` (list of int32) and `label` (int8)."""
    import pyarrow as pa

    table = pa.table({"token": pa.array(rows, pa.list_(pa.int32())), "label": pa.array(labels, pa.int8())})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def read(path: Path) -> tuple[list[Tensor], Tensor]:
    """Token rows (int64, (length,)) and labels (int64, (n,)) of a table that `write` wrote."""
    with parquet_reader(path) as file:
        table = file.read()
        rows = [torch.tensor(row, dtype=torch.int64) for row in table["token"].to_pylist()]
        return rows, torch.tensor(table["label"].to_pylist())
