"""Means and second moments of the inputs of linear maps, computed from a stream of rows.

A closed-form fit needs nothing else of the calibration text: the error of a weight W' in place of W,
E|(W - W') x|^2, is tr((W - W') C (W - W')') with C = E[x x'].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Role -> the input of its linear map: the FFN's input, or its hidden activations.
SITE = {"in": "input", "gate": "input", "out": "hidden"}


@dataclass(frozen=True)
class Moments:
    """mean: E[x], shape (d,); second: E[x x'], shape (d, d). Both float64."""

    mean: Tensor
    second: Tensor

    def centred(self) -> "Moments":
        """The moments of x - E[x], for a fit whose bias absorbs the mean.

        A coordinate that never varies has exact zeros. Rounding could leave a negative value, which has no Cholesky
        factor.
        """
        second = self.second - torch.outer(self.mean, self.mean)
        varies = second.diagonal() > 1e-13 * self.second.diagonal()
        return Moments(torch.zeros_like(self.mean), torch.where(varies & varies[:, None], second, 0.0))

    def permuted(self, permutation: Tensor) -> "Moments":
        """The moments of x with coordinate `permutation[k]` in position k."""
        return Moments(self.mean[permutation], self.second[permutation][:, permutation])

    @cached_property
    def root(self) -> Tensor:
        """`factor` with its default ridge, computed once for all roles and rounds of a fit."""
        return self.factor()

    def factor(self, ridge: float = 1e-6) -> Tensor:
        """A lower-triangular L with L L' = C + ridge * mean(diag C) * I, which is positive definite."""
        return torch.linalg.cholesky(self.ridged(ridge))

    def ridged(self, ridge: float = 1e-6) -> Tensor:
        """C + ridge * mean(diag C) * I: positive definite also where no row has used some direction."""
        scale = self.second.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        return self.second + ridge * scale * torch.eye(
            len(self.second), dtype=self.second.dtype, device=self.second.device
        )


class MomentStream:
    """Sums of rows and of their outer products in float64; memory does not grow with the rows."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def update(self, rows: Tensor) -> None:
        """Add rows, shape (n, d)."""
        rows = rows.double()
        self.count += len(rows)
        self.sum = self.sum + rows.sum(0)
        self.products = self.products + rows.T @ rows

    def moments(self) -> Moments:
        """The moments of all rows so far."""
        return Moments(self.sum / self.count, self.products / self.count)


def to_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """`site.mean` and `site.second` -> tensor, for a file; float64, since a rounded C may have no Cholesky factor."""
    return {f"{site}.{part}": getattr(m, part) for site, m in moments.items() for part in ("mean", "second")}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """The inverse of `to_tensors`."""
    sites = sorted({name.rsplit(".", 1)[0] for name in tensors})
    return {site: Moments(tensors[f"{site}.mean"], tensors[f"{site}.second"]) for site in sites}
