"""Means and second moments of the inputs of linear maps, computed from a stream of rows.

A closed-form fit needs nothing else of the calibration text: the error of a weight W' in place of W,
E|(W - W') x|^2, is tr((W - W') C (W - W')') with C = E[x x'].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.core.architecture.ffn import unsigned

CHUNK = 1024  # rows of one product: a longer sum in float32 would round more
TILE = 512  # columns of one product

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
        factor. Computed once.
        """
        return self._less_mean

    @cached_property
    def _less_mean(self) -> "Moments":
        second = self.second - torch.outer(self.mean, self.mean)
        varies = second.diagonal() > 1e-13 * self.second.diagonal()
        return Moments(torch.zeros_like(self.mean), torch.where(varies & varies[:, None], second, 0.0))

    def permuted(self, permutation: Tensor) -> "Moments":
        """The moments of x with coordinate `permutation[k]` in position k; an entry ~j is -x_j (see `ffn.permute`)."""
        order, signs = unsigned(permutation)
        mean, second = self.mean[order], self.second[order][:, order]
        return Moments(mean, second) if signs is None else Moments(mean * signs, second * signs * signs[:, None])

    @cached_property
    def root(self) -> Tensor:
        """`factor` with its default ridge, computed once for all roles and rounds of a fit."""
        return self.factor()

    def factor(self, ridge: float = 1e-6) -> Tensor:
        """A lower-triangular L with L L' = C + ridge * mean(diag C) * I, by `cholesky`."""
        return cholesky(self.ridged(ridge))

    def ridged(self, ridge: float = 1e-6) -> Tensor:
        """C + ridge * mean(diag C) * I: positive definite also where no row has used some direction."""
        found = self.second.clone()
        found.diagonal().add_(self.ridge(ridge))
        return found

    def ridge(self, ridge: float = 1e-6) -> Tensor:
        """ridge * mean(diag C), a scalar above 0."""
        return ridge * self.second.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)


def cholesky(gram: Tensor) -> Tensor:
    """The lower Cholesky factor of a symmetric matrix (d, d), float64, that is positive definite but for rounding.

    Where rounding has left a direction without length, 1e-6 of the mean diagonal is added, then ten times as much, and
    so on. Raises torch.linalg.LinAlgError where even a tenth of it does not help.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    ridge = 1e-6
    while failed and ridge <= 0.1:
        raised = gram.clone()
        raised.diagonal().add_(ridge * gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(raised)
        ridge *= 10
    return torch.linalg.cholesky(gram) if failed else factor


def root(gram: Tensor) -> Tensor:
    """L with L L' = G, of a parallel sum: its Cholesky factor, or, where there is none, a root of its positive part.

    Where layers read inputs of different directions, a parallel sum is 0, and rounding leaves values on both sides.
    """
    try:
        return cholesky(gram)
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(gram)
        return vectors * values.clamp_min(0).sqrt()


class MomentStream:
    """Sums of rows and of their outer products; memory does not grow with the rows.

    A product of at most CHUNK rows is taken in the rows' own dtype and added up in float64, so that float32 rows cost
    float32 products. Rows are taken less the mean of the first batch: else the rounding of a large mean would hide a
    small variance. An entry (i, j) is off by less than 1e-6 of the sizes of the coordinates i and j.
    """

    def __init__(self) -> None:
        self.count = 0
        self.pilot = self.sum = self.products = torch.empty(0)

    def update(self, rows: Tensor) -> None:
        """Add rows, shape (n, d)."""
        width = rows.shape[1]
        if not self.count:
            self.pilot = rows.mean(0, dtype=torch.float64).to(rows.dtype)
            self.sum = torch.zeros(width, dtype=torch.float64, device=rows.device)
            self.products = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        rows = rows - self.pilot
        self.count += len(rows)
        self.sum += rows.sum(0, dtype=torch.float64)
        for part in rows.split(CHUNK):
            for start, stop in _tiles(rows):
                self.products[start:stop, start:] += part[:, start:stop].T @ part[:, start:]

    def moments(self) -> Moments:
        """The moments of all rows so far; `second` is symmetric to the last bit on every processor."""
        for start, stop in _tiles(self.products):
            # Not every processor's product of a matrix with itself is symmetric.
            tile = self.products[start:stop, start:stop]
            tile.copy_(tile.triu() + tile.triu(1).T)
            self.products[stop:, start:stop] = self.products[start:stop, stop:].T
        offset, mean = self.sum / self.count, self.pilot + self.sum / self.count
        second = (self.products / self.count).addr_(mean, mean).addr_(offset, offset, alpha=-1)
        return Moments(mean, second)


def _tiles(matrix: Tensor) -> list[tuple[int, int]]:
    """The columns of a symmetric product in ranges, of which only what lies above the diagonal is computed.

    torch has no symmetric product. A GPU computes the whole: it is faster than its parts.
    """
    width = matrix.shape[1]
    step = TILE if matrix.device.type == "cpu" else width
    return [(start, min(start + step, width)) for start in range(0, width, step)]


def to_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """`site.mean` and `site.second` -> tensor, for a file; float64, since a rounded C may have no Cholesky factor."""
    return {f"{site}.{part}": getattr(m, part) for site, m in moments.items() for part in ("mean", "second")}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """The inverse of `to_tensors`."""
    sites = sorted({name.rsplit(".", 1)[0] for name in tensors})
    return {site: Moments(tensors[f"{site}.mean"], tensors[f"{site}.second"]) for site in sites}
