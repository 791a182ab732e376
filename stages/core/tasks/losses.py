"""The losses behind a perplexity: their mean, and a table of them, so that models can be compared answer by answer."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.process.artifacts import parquet_writer
from stages.core.process.errors import UserError


def exp_mean(losses: Iterable[Any]) -> float:
    """exp of the mean over the elements of tensors or arrays of one axis.

    Raises UserError where that has no float64 value.
    """
    total, count = 0.0, 0
    for each in losses:
        total += each.sum().item()
        count += len(each)
    mean = total / count
    if not mean <= 700:
        raise UserError(f"the mean loss is {mean:.0f} nats: perplexity has no float64 value, the model is broken")
    return math.exp(mean)


def blocks(count: int, size: int) -> np.ndarray:
    """The number of the block that each of `count` losses in a row is in, int32, (count,)."""
    return np.arange(count, dtype=np.int32) // size


def keep(path: Path, before: np.ndarray, after: np.ndarray, block: int) -> None:
    """Write a parquet table, a row for every answer in order: block, before, after (losses in nats, float32).

    block: how many answers in a row are one draw of the test split; the column numbers these draws from 0.
    """
    import pyarrow as pa

    columns = {
        "block": pa.array(blocks(len(after), block)),
        "before": pa.array(before.astype(np.float32)),
        "after": pa.array(after.astype(np.float32)),
    }
    table = pa.table(columns)
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
