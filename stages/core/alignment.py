"""Matching the neurons of two layers by how alike they fire.

Neurons are matched by the assignment that maximises the summed correlation of their activations (Hungarian
method, Kuhn 1955; for networks: Li et al. 2015, arXiv:1511.07543; Ainsworth et al. 2022, arXiv:2209.04836).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class CorrelationStream:
    """Pearson correlations of every neuron of one layer with every neuron of another, from batches of rows.

    Means and co-moments are merged batch by batch (Chan, Golub & LeVeque 1979) in float64, so no split into
    batches changes the result and nothing is lost to E[xy] - E[x]E[y].
    """

    count: int = 0
    mean: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    products: Tensor | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x of shape (rows, d_x), y of shape (rows, d_y), the same tokens in the same order."""
        x, y = x.double(), y.double()
        rows, means = len(x), [x.mean(0), y.mean(0)]
        x, y = x - means[0], y - means[1]
        squares, products = [(x * x).sum(0), (y * y).sum(0)], x.T @ y
        if self.count:
            total = self.count + rows
            shift = [new - old for new, old in zip(means, self.mean)]
            weight = self.count * rows / total
            squares = [s + old + weight * d * d for s, old, d in zip(squares, self.squares, shift)]
            products = self.products + products + weight * torch.outer(*shift)
            means = [old + d * (rows / total) for old, d in zip(self.mean, shift)]
        self.count += rows
        self.mean, self.squares, self.products = means, squares, products

    def matrix(self) -> Tensor:
        """Correlations, float64, shape (d_x, d_y), within [-1, 1]; 0 where a neuron never varies."""
        scale = [torch.where(dead, 0.0, s.clamp_min(1e-300).rsqrt()) for s, dead in zip(self.squares, self.dead())]
        return (self.products * scale[0][:, None] * scale[1]).clamp(-1.0, 1.0)

    def dead(self) -> tuple[Tensor, Tensor]:
        """Which neurons of either layer never varied by more than rounding (bool)."""
        return tuple(s <= self.count * (1e-12 * (1.0 + mean.abs())) ** 2 for s, mean in zip(self.squares, self.mean))


def match(correlation: np.ndarray) -> np.ndarray:
    """The permutation p (int64) that maximises the sum of correlation[k, p[k]], for a square matrix.

    Rows and columns that are all zero (neurons that never vary) are matched among themselves.
    """
    from scipy.optimize import linear_sum_assignment

    gain = np.array(correlation, dtype=np.float64)
    # More than any correlation can offer, so that dead neurons pair up instead of taking live partners.
    gain[np.ix_(~gain.any(axis=1), ~gain.any(axis=0))] = 2.0
    return linear_sum_assignment(gain, maximize=True)[1].astype(np.int64)


def matched_correlation(correlation: np.ndarray, permutation: np.ndarray) -> float:
    """The mean correlation of matched pairs."""
    return float(correlation[np.arange(len(permutation)), permutation].mean(dtype=np.float64))


def null_correlation(rows: int, neurons: int, seed: int = 0) -> float:
    """The mean matched correlation of two layers of independent Gaussian neurons.

    Matching finds the best of many chance correlations, so this is what a match of as many `rows` (tokens)
    and `neurons` is worth by chance alone: only the excess over it says anything.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = CorrelationStream()
    stream.update(*(torch.randn(rows, neurons, generator=generator) for _ in range(2)))
    correlation = stream.matrix().numpy()
    return matched_correlation(correlation, match(correlation))
