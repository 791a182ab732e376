"""Fits of one base and a delta for each layer to the weights that several layers have for the same role."""

from dataclasses import dataclass

from torch import Tensor

from stages.core.calibration.moments import Moments
from stages.core.shrinking.joint import Joint
from stages.core.shrinking.lowrank import DELTAS
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
    """Base and deltas of two or more layers that are fitted together (see stages.core.shrinking.joint)."""
    return Fit(*Joint(weights, moments).fit(ranks, rounds))


def _deltas(method, residuals: list[Tensor], moments: list[Moments], ranks: list[int]) -> list:
    """A delta for each residual, None where its rank is 0."""
    return [method(r, rank, m) if rank else None for r, rank, m in zip(residuals, ranks, moments)]
