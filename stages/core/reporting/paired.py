"""How far a perplexity is known to lie from the control's: two models read the same test split, so they are paired.

A test split is a draw, and a difference of two models on it is known only as well as it repeats over the split. Losses
of neighbouring tokens are alike, so blocks of them are what is drawn, and an image is a block of its own. Standard
errors of clustered, paired differences: Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from stages.core.process.artifacts import numbers, parquet_reader
from stages.core.process.errors import UserError


def margins(folder: Path, names: Iterable[str]) -> dict[str, float]:
    """Variant -> the `margin` between its losses after recovery and the control's, for those that have one.

    folder: of the tables that stage `perplexity` keeps. Raises UserError where two are not of one split.
    """
    columns = {name: _read(folder / f"{name}.parquet") for name in names}
    blocks, control = columns["original"]
    found = {}
    for name, (own_blocks, own) in columns.items():
        if not np.array_equal(own_blocks, blocks):
            raise UserError(f"{folder / name}.parquet and original.parquet are of different texts: run `dvc repro`")
        found[name] = margin(own, control, blocks)
    return {name: value for name, value in found.items() if value is not None}


def margin(own: np.ndarray, other: np.ndarray, blocks: np.ndarray) -> float | None:
    """Half the width of the 95% interval of mean(own - other), in nats; None where all is one block.

    own, other: losses of two models, (n,). blocks: the number of each loss's block, from 0, int, (n,). With the sums
    d_b and sizes n_b of k blocks and the mean m, its variance is k / (k - 1) * sum (d_b - m n_b)^2 / n^2, that of a
    ratio of sums; Student's t has k - 1 degrees of freedom.
    """
    difference = own.astype(np.float64) - other
    sizes, sums = np.bincount(blocks), np.bincount(blocks, difference)
    count = len(sizes)
    if count < 2:
        return None
    variance = count / (count - 1) * ((sums - difference.mean() * sizes) ** 2).sum() / len(difference) ** 2
    return float(stdtrit(count - 1, 0.975) * math.sqrt(variance))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with parquet_reader(path) as file:
        table = file.read(columns=["block", "after"])
        return numbers(table["block"]), numbers(table["after"])
