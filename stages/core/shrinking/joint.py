"""The joint fit of one base and a delta for each of several layers: min sum_l E|(W_l - W_c - A_l B_l) x_l|^2.

Block descent: a step fits one delta with the base solved for. Let C_l be the second moments of layer l, S their sum,
C_o = S - C_l, and R_l what W_l differs from the regression mean of the other weights less their deltas. Then the error
of delta l is, up to a constant, that of fitting R_l in the metric of the parallel sum M_l = C_l S^-1 C_o. So a step is
solved exactly by the leading eigenvectors U of R_l M_l R_l': A_l B_l = U U'R_l.

Two identities keep the steps cheap. R_l M_l = (W_l - V_l) C_l, where V_l is the base without delta l, needs no M_l. And
the other layers' deltas have low rank, so they change R_l and R_l M_l by thin products. What does not depend on the
ranks is computed once, in `Joint`.
"""

from dataclasses import dataclass

import torch
from scipy import linalg
from torch import Tensor

from stages.core.calibration.moments import Moments, cholesky, root
from stages.core.shrinking.lowrank import balanced


class Joint:
    """The fits, with any ranks, of aligned weights (d_out, d_in) of one role; all float64."""

    def __init__(self, weights: list[Tensor], moments: list[Moments]):
        """moments: those of each layer's inputs."""
        self.grams = [m.ridged() for m in moments]
        self.whole = cholesky(sum(self.grams))
        own = [weight @ gram for weight, gram in zip(weights, self.grams)]
        total = sum(own)
        self.centre = _solved(self.whole, total)  # the base without deltas
        self.others, self.steps, self.last = [], [], []
        for layer, (weight, gram, product) in enumerate(zip(weights, self.grams, own)):
            rest = sum(other for number, other in enumerate(self.grams) if number != layer)
            factor, right = cholesky(rest), total - product
            apart, left = weight - self.centre, weight - _solved(factor, right)
            seen = product - self.centre @ gram
            self.others.append(factor)
            if weight.shape[0] > weight.shape[1]:
                self.steps.append(_Tall(left, root(parallel(gram, rest, self.whole))))
                self.last.append(_Tall(apart, moments[layer].root))
                continue
            weighed = seen
            if gram.trace() > rest.trace():  # the difference above would lose digits
                missing = weight @ rest - right
                weighed = missing - _solved(self.whole, missing) @ rest
            self.steps.append(_Wide(left, weighed))
            self.last.append(_Wide(apart, seen))

    def fit(self, ranks: list[int], rounds: int) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """The base, and A_l (d_out, rank) and B_l (rank, d_in) of each layer, None where its rank is 0.

        In a round every delta is fitted in turn. Two layers reach the optimum in one round: their weights may differ by
        any matrix of rank r_1 + r_2, which one decomposition chooses. Last, every delta is fitted to the final base.
        """
        deltas: dict[int, tuple[Tensor, Tensor]] = {}  # A_l, and B_l C_l
        chosen = [layer for layer, rank in enumerate(ranks) if rank]
        for _ in range(rounds if len(ranks) > 2 else 1):
            for layer in chosen:
                a, right = self._together(other for number, other in deltas.items() if number != layer)
                a, b = self._fit(self.steps[layer], layer, a, right, _solved(self.others[layer], right), ranks[layer])
                deltas[layer] = a, b @ self.grams[layer]
        a, right = self._together(deltas.values())
        moved = _solved(self.whole, right)
        last = {layer: balanced(*self._fit(self.last[layer], layer, a, right, moved, ranks[layer])) for layer in chosen}
        return self.centre - a @ moved, [last.get(layer) for layer in range(len(ranks))]

    def _fit(self, step: "_Wide | _Tall", layer: int, a: Tensor, right: Tensor, moved: Tensor, rank: int):
        """A and B of a layer whose residual the deltas before have changed by `a @ moved`."""
        u = step.leading(a, moved, _solved(self.whole, right) @ self.grams[layer], rank)
        return u, u.T @ step.residual + (u.T @ a) @ moved

    def _together(self, deltas) -> tuple[Tensor, Tensor]:
        """All A side by side, and all B C below each other."""
        both = [(self.centre[:, :0], self.centre[:0]), *deltas]
        return torch.cat([a for a, _ in both], dim=1), torch.cat([right for _, right in both])


@dataclass(frozen=True)
class _Wide:
    """R and R M of a layer, (d_out, d_in), d_out <= d_in: R M R' is the smaller matrix to decompose."""

    residual: Tensor
    weighed: Tensor

    def __post_init__(self):
        object.__setattr__(self, "product", self.weighed @ self.residual.T)

    def leading(self, a: Tensor, moved: Tensor, weighed: Tensor, rank: int) -> Tensor:
        """The leading eigenvectors where R is larger by `a @ moved`, and R M by `a @ weighed`."""
        changed = self.product + a @ (weighed @ self.residual.T)
        changed += (self.weighed @ moved.T + a @ (weighed @ moved.T)) @ a.T
        return _leading(changed, rank)


@dataclass(frozen=True)
class _Tall:
    """R of a layer, (d_out, d_in), d_out > d_in, and a root L of M = L L': L'R'R L is the smaller matrix."""

    residual: Tensor
    root: Tensor

    def __post_init__(self):
        object.__setattr__(self, "reduced", self.residual @ self.root)
        object.__setattr__(self, "product", self.reduced.T @ self.reduced)

    def leading(self, a: Tensor, moved: Tensor, weighed: Tensor, rank: int) -> Tensor:
        """The leading left singular vectors of R L where R is larger by `a @ moved`."""
        thin = moved @ self.root
        crossed = (self.reduced.T @ a) @ thin
        v = _leading(self.product + crossed + crossed.T + thin.T @ (a.T @ a) @ thin, rank)
        return torch.linalg.qr(self.reduced @ v + a @ (thin @ v)).Q


def parallel(gram: Tensor, other: Tensor, whole: Tensor) -> Tensor:
    """The parallel sum G (G + H)^-1 H of G and H, from the Cholesky factor of G + H.

    It is S - S (G + H)^-1 S for both. The smaller S of the two loses no digits to the difference.
    """
    smaller = min(gram, other, key=lambda matrix: matrix.diagonal().sum().item())
    half = torch.linalg.solve_triangular(whole, smaller, upper=False)
    return smaller - half.T @ half


def _solved(factor: Tensor, rows: Tensor) -> Tensor:
    """rows G^-1, from the Cholesky factor of G. torch.cholesky_solve would copy the factor each time."""
    half = torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues of a symmetric matrix, in columns."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigh(matrix).eigenvectors[:, -rank:]
    # torch computes all of them, in twice the time.
    chosen = [len(matrix) - rank, len(matrix) - 1]
    return torch.from_numpy(linalg.eigh(matrix.numpy(), subset_by_index=chosen, check_finite=False)[1])
