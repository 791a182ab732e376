"""How far two perplexities are known to lie apart: both models read the same test split, so their losses are paired.

A test split is a draw, and a difference of two models on it is known only as well as it repeats over the split. Losses
of neighbouring tokens are alike, so blocks of them are what is drawn, and an image is a block of its own. Standard
errors of clustered, paired differences: Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640).
"""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from stages.core.process.artifacts import numbers, parquet_reader
from stages.core.process.errors import UserError


class Losses(NamedTuple):
    """What models lost at each answer of one test split.

    blocks: the number of each answer's block, from 0, int, (n,). of: a variant's losses after recovery, in nats, (n,).
    """

    blocks: np.ndarray
    of: dict[str, np.ndarray]


def read(folder: Path, names: Iterable[str]) -> Losses:
    """The tables that stage `perplexity` keeps of these variants.

    Raises UserError where two are not of one split, or a table is none of losses in blocks.
    """
    blocks, of = None, {}
    for name in names:
        path = folder / f"{name}.parquet"
        with parquet_reader(path) as file:
            table = file.read(columns=["block", "after"])
            own, of[name] = numbers(table["block"]), numbers(table["after"])
        steps = np.diff(own, prepend=-1)
        if not np.isfinite(of[name]).all() or own[:1].tolist() != [0] or not np.isin(steps, (0, 1)).all():
            raise UserError(f"{path} is no table of losses in blocks: delete it and run `dvc repro`")
        if blocks is not None and not np.array_equal(own, blocks):
            raise UserError(f"{path} and {next(iter(of))}.parquet are of different texts: run `dvc repro`")
        blocks = own
    return Losses(blocks, of)


def refuse_others(found: Losses, perplexity: Mapping[str, Mapping[str, float]]) -> None:
    """Raise UserError where losses are not those behind a perplexity, which of several seeds is a mean: none then."""
    for name, losses in found.of.items():
        mean = losses.mean(dtype=np.float64)
        if perplexity[name]["seeds"] == 1 and not math.isclose(mean, math.log(perplexity[name]["after"]), abs_tol=1e-4):
            raise UserError(f"the losses and the perplexity of {name} are of different models: run `dvc repro`")


def margins(found: Losses) -> dict[str, float]:
    """Variant -> the `margin` between its losses and the control's; empty where the split is one block."""
    each = {name: margin(own, found.of["original"], found.blocks) for name, own in found.of.items()}
    return {name: value for name, value in each.items() if value is not None}


def ratio(found: Losses, one: str, other: str) -> tuple[float, float, float] | None:
    """The perplexity of one variant over another's, and its 95% interval; None where the split is one block."""
    half = margin(found.of[one], found.of[other], found.blocks)
    if half is None:
        return None
    middle = float((found.of[one].astype(np.float64) - found.of[other]).mean())
    return factor(middle), factor(middle - half), factor(middle + half)


def factor(nats: float) -> float:
    """exp of a difference in nats, at most the largest that float64 has."""
    return math.exp(min(nats, 709.0))


def untold(found: Losses) -> list[tuple[str, str]]:
    """Neighbours in the order of perplexity, the lower first, where the split does not tell which is lower.

    Models that lose the same everywhere are one model, and none of these.
    """
    order = sorted(found.of, key=lambda name: found.of[name].mean(dtype=np.float64))
    near = []
    for lower, higher in pairwise(order):
        known = ratio(found, higher, lower)
        if known and known[1] <= 1 and not np.array_equal(found.of[lower], found.of[higher]):
            near.append((lower, higher))
    return near


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
