"""Fits of one base and a delta for each layer to the weights that several layers have for the same role."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.core.calibration.moments import Moments, cholesky
from stages.core.shrinking.lowrank import DELTAS, weighted
from stages.core.shrinking.merging import BASES

ROUNDS = 5  # of the joint fit of more than two layers: more of them lower the error by 2% and perplexity hardly at all


@dataclass(frozen=True)
class Fit:
    """base: (d_out, d_in). deltas: for each layer (A, B), (d_out, rank) and (rank, d_in), or None. All float64."""

    base: Tensor
    deltas: list[tuple[Tensor, Tensor] | None]

    def weight(self, member: int) -> Tensor:
        """W_c + A_l B_l, shape (d_out, d_in)."""
        delta = self.deltas[member]
        return self.base if delta is None else self.base + delta[0] @ delta[1]


def fit(weights: list[Tensor], moments: list[Moments], base: str, delta: str, ranks: list[int]) -> Fit:
    """The named base and delta for aligned weights of one role. weights: float64; ranks: one for each layer."""
    if delta == "joint":
        return joint(weights, moments, ranks)
    centre = BASES[base](weights, moments)
    if delta == "none":
        return Fit(centre, [None] * len(weights))
    return Fit(centre, _deltas(DELTAS[delta], [weight - centre for weight in weights], moments, ranks))


def joint(weights: list[Tensor], moments: list[Moments], ranks: list[int], rounds: int = ROUNDS) -> Fit:
    """Base and deltas of two or more layers by block descent on sum_l E|(W_l - W_c - A_l B_l) x_l|^2.

    A step fits one delta with the base solved for. Let C_o be the summed second moments of the other layers, and M the
    regression mean of their weights minus their deltas. Then the error of delta l is, up to a constant, that of fitting
    W_l - M in the metric of the parallel sum C_l (C_l + C_o)^-1 C_o, so the weighted fit solves the step exactly. Two
    layers reach the optimum in one round: their weights may differ by any matrix of rank r_1 + r_2, which one SVD
    chooses. Last, every delta is fitted to the final base.
    """
    grams, whole, factors, metrics = eliminated(moments)
    own = [weight @ gram for weight, gram in zip(weights, grams)]
    rest = list(own)  # (W_l - A_l B_l) C_l
    for _ in range(rounds if len(weights) > 2 else 1):
        for layer in (layer for layer, rank in enumerate(ranks) if rank):
            right = sum(product for other, product in enumerate(rest) if other != layer)
            centre = torch.cholesky_solve(right.T, factors[layer]).T
            a, b = weighted(weights[layer] - centre, ranks[layer], metrics[layer])
            rest[layer] = own[layer] - a @ (b @ grams[layer])
    base = torch.cholesky_solve(sum(rest).T, whole).T
    return Fit(base, _deltas(weighted, [weight - base for weight in weights], moments, ranks))


def eliminated(moments: list[Moments]) -> tuple[list[Tensor], Tensor, list[Tensor], list[Moments]]:
    """What a fit of one layer needs whose base is solved for: C_l, and Cholesky factors of sum C and of the C_o.

    Last, for each layer, the metric C_l (C_l + C_o)^-1 C_o, C_o being the sum over the other layers (see `joint`).
    """
    grams = [m.ridged() for m in moments]
    whole = cholesky(sum(grams))
    others = [sum(gram for other, gram in enumerate(grams) if other != layer) for layer in range(len(grams))]
    metrics = [Moments(m.mean, _parallel(gram, other, whole)) for m, gram, other in zip(moments, grams, others)]
    return grams, whole, [cholesky(other) for other in others], metrics


def _parallel(gram: Tensor, other: Tensor, whole: Tensor) -> Tensor:
    """The parallel sum G (G + H)^-1 H of G and H, from the Cholesky factor of G + H.

    It is S - S (G + H)^-1 S for both. The smaller S of the two loses no digits to the difference.
    """
    smaller = min(gram, other, key=lambda matrix: matrix.diagonal().sum().item())
    half = torch.linalg.solve_triangular(whole, smaller, upper=False)
    return smaller - half.T @ half


def _deltas(method, residuals: list[Tensor], moments: list[Moments], ranks: list[int]) -> list:
    """A delta for each residual, None where its rank is 0."""
    return [method(r, rank, m) if rank else None for r, rank, m in zip(residuals, ranks, moments)]
