"""What may become of one FFN matrix: it stays dense, becomes a product of two thin ones, or keeps few entries."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.targets import mask_size
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix

SHARES = tuple(share / 20 for share in range(1, 20))  # of a matrix's entries, that sparse options keep
ROUNDED = 1e-6  # of the diagonal: moments are sums of float32 products, so what varies less may even be negative
ROUNDS = 5  # of conjugate gradients, which refit the entries that stay
DENSE = {"form": "dense"}
GONE = {"form": "low_rank", "rank": 0}

Form = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """A form of one matrix: what it stores, the relative error E|(W - W') x|^2 / E|W x|^2, and the form by name.

    form: {form: dense}, {form: low_rank, rank} or {form: sparse, kept, score, refit}; rank 0 leaves nothing of it.
    """

    stored: int
    error: float
    form: Form


def matrices(view: ModelView) -> list[Matrix]:
    """(layer, role) of every FFN matrix."""
    return [(layer, role) for layer in range(view.depth) for role in view.roles]


def options(
    view: ModelView, calibration: Calibration, layer: int, role: str, forms: Iterable[str] = ("low_rank", "sparse")
) -> list[Option]:
    """What may become of a matrix: nothing of it is left, all ranks and densities that store less, or all of it."""
    weight, moments = read(view, calibration, layer, role)
    whole, root = weight.numel(), moments.root
    gains = budgets.gains(weight @ root, weight @ root)
    total = (weight @ root).square().sum()
    if not total > budgets.NOTHING:
        return [Option(0, 0.0, GONE)]
    left = (gains.sum() - gains.cumsum(0)).clamp_min(0).tolist()
    found = [Option(0, 1.0, GONE), Option(whole, 0.0, DENSE)]
    if "low_rank" in forms:
        for rank, error in enumerate(left, 1):
            form = {"form": "low_rank", "rank": rank}
            if (stored := stored_by(form, *weight.shape)) < whole:
                found.append(Option(stored, error, form))
    if "sparse" in forms:
        for kept in (int(share * whole) for share in SHARES):
            form = {"form": "sparse", "kept": kept, "score": "input", "refit": True}
            if (stored := stored_by(form, *weight.shape)) < whole:
                missing = (weight - sparse(weight, moments, kept, "input", refit=True)) @ root
                found.append(Option(stored, (missing.square().sum() / total).item(), form))
    return found


def stored_by(form: Form, d_out: int, d_in: int) -> int:
    """The parameters that a form stores of a matrix of shape (d_out, d_in), the mask included."""
    if form["form"] == "low_rank":
        return form["rank"] * (d_out + d_in)
    return form["kept"] + mask_size(d_out * d_in) if form["form"] == "sparse" else d_out * d_in


def sparse(weight: Tensor, moments: Moments, kept: int, score: str, refit: bool = False) -> Tensor:
    """The matrix with its `kept` largest entries, by magnitude or by the score `input` of `baselines.prune`.

    `row` is the score `input`, and the same number of entries of every row that is not zero. With `refit` the entries
    that stay change to make up for those that go.
    """
    sizes = weight.abs()
    if score != "magnitude":
        sizes = sizes * moments.second.diagonal().clamp_min(0).sqrt()
    rows = sizes if score == "row" else sizes.flatten()[None]
    alive = max(1, int((rows > 0).any(1).sum()))  # a row of zeros has no entry to keep
    stay = torch.zeros_like(rows).scatter_(1, rows.topk(kept // alive, dim=1).indices, 1).view_as(weight)
    return refitted(weight, moments, stay) if refit else weight * stay


def refitted(weight: Tensor, moments: Moments, stay: Tensor, rounds: int = ROUNDS) -> Tensor:
    """The matrix V, zero where `stay` is 0, that brings E|(W - V) x|^2 down from that of W with these zeros.

    The error is a quadratic form of every row of V. So conjugate gradients, all rows at once and scaled by the
    diagonal of the moments, lower it in every round and end at its least value (Hestenes & Stiefel 1952). Along a
    direction in which the moments vary no more than they are rounded, no step is taken.
    """
    second, tiny = moments.ridged(), torch.finfo(weight.dtype).tiny
    values, scale = weight * stay, second.diagonal()
    slope = ((weight - values) @ second) * stay
    direction = slope / scale
    size = (slope * direction).sum(1, keepdim=True)
    for _ in range(rounds):
        change = (direction @ second) * stay
        curvature = (direction * change).sum(1, keepdim=True)
        known = curvature > ROUNDED * (direction.square() * scale).sum(1, keepdim=True)
        step = torch.where(known, size / curvature, 0.0)
        values, slope = values + step * direction, slope - step * change
        before, size = size, (slope.square() / scale).sum(1, keepdim=True)
        direction = slope / scale + size / before.clamp_min(tiny) * direction
    return values


def read(
    view: ModelView, calibration: Calibration, layer: int, role: str, corrected: bool = True
) -> tuple[Tensor, Moments]:
    """A matrix, float64, and the moments of its input: centred where a bias takes up the mean.

    corrected: whether biases do so, where there are any.
    """
    ffn, moments = view.read_double(layer), calibration.moments(layer)[SITE[role]]
    return ffn[f"w_{role}"], moments.centred() if corrected and f"b_{role}" in ffn else moments
