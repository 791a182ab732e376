"""How several layers' weights for the same role become one base and a delta for each."""

from dataclasses import dataclass

from torch import Tensor

from stages.core.moments import Moments
from stages.core.shrinking.lowrank import DELTAS, weighted
from stages.core.shrinking.merging import BASES, regression

ROUNDS = 5  # of the joint fit; the error has flattened by then (it cannot rise)


@dataclass(frozen=True)
class Fit:
    """base (d_out, d_in) and, for each layer, its delta (A, B) or None."""

    base: Tensor
    deltas: list[tuple[Tensor, Tensor] | None]

    def weight(self, member: int) -> Tensor:
        """W_c + A_l B_l."""
        delta = self.deltas[member]
        return self.base if delta is None else self.base + delta[0] @ delta[1]


def fit(weights: list[Tensor], moments: list[Moments], base: str, delta: str, ranks: list[int]) -> Fit:
    """Fit aligned weights of one role (float64) by the named base and delta, `ranks` one for each layer."""
    if delta == "joint":
        return joint(weights, moments, ranks)
    centre = BASES[base](weights, moments)
    if delta == "none":
        return Fit(centre, [None] * len(weights))
    return Fit(centre, _deltas(DELTAS[delta], [weight - centre for weight in weights], moments, ranks))


def joint(weights: list[Tensor], moments: list[Moments], ranks: list[int], rounds: int = ROUNDS) -> Fit:
    """Base and deltas that descend together on sum_l E|(W_l - W_c - A_l B_l) x_l|^2.

    Alternates the two exact steps: the regression mean of W_l - A_l B_l, and the weighted fit of W_l - W_c.
    """
    rest = weights
    for _ in range(rounds):
        centre = regression(rest, moments)
        deltas = _deltas(weighted, [weight - centre for weight in weights], moments, ranks)
        rest = [weight if d is None else weight - d[0] @ d[1] for weight, d in zip(weights, deltas)]
    return Fit(centre, deltas)


def _deltas(method, residuals: list[Tensor], moments: list[Moments], ranks: list[int]) -> list:
    """A delta for each residual, None where its rank is 0."""
    return [method(r, rank, m) if rank else None for r, rank, m in zip(residuals, ranks, moments)]
