"""Matching the neurons of layers, by the correlation of their activations or by the error of their weights.

The assignment maximises the summed correlation of activations, or minimises the summed error of weights (Hungarian
method, Kuhn 1955; for networks: Li et al. 2015, arXiv:1511.07543; Ainsworth et al. 2022, arXiv:2209.04836). The
reference is a group's first layer, or the running mean of the layers aligned so far (`centre`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.ffn import Ffn
from stages.core.calibration.moments import SITE, Moments

REFERENCES = ("first", "centre")


@dataclass
class CorrelationStream:
    """Pearson correlations of every neuron of one layer with every neuron of another, from batches of rows.

    Means and co-moments are merged batch by batch (Chan, Golub & LeVeque 1979) in float64. The result does not depend
    on the split into batches, and E[xy] - E[x]E[y], which cancels, is never computed.
    """

    count: int = 0
    mean: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    products: Tensor | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x (rows, d_x) and y (rows, d_y), of the same tokens in the same order."""
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
        """Masks of the neurons that never varied by more than rounding: bool, (d_x,) and (d_y,)."""
        return tuple(s <= self.count * (1e-12 * (1.0 + mean.abs())) ** 2 for s, mean in zip(self.squares, self.mean))


def match(correlation: np.ndarray) -> np.ndarray:
    """The permutation p (int64, (d_ff,)) that maximises the sum of correlation[k, p[k]], for a square matrix.

    Rows and columns that are all zero (neurons that never vary) are matched with each other.
    """
    gain = np.array(correlation, dtype=np.float64)
    # More than any correlation, so that dead neurons pair up and take no live partner.
    gain[np.ix_(~gain.any(axis=1), ~gain.any(axis=0))] = 2.0
    return _assign(gain)


def by_correlation(
    between: Callable[[int, int], np.ndarray], layers: list[int], reference: str
) -> dict[int, np.ndarray]:
    """Layer -> the permutation (int64, (d_ff,)) that aligns its neurons with those of layers[0], for layers[1:].

    between(m, l): the correlations of layer m's neurons (rows) with layer l's, (d_ff, d_ff). With the reference
    `centre`, a neuron is matched by its mean correlation with the neurons that the aligned layers have in a position.
    """
    found = {layers[0]: np.arange(len(between(layers[0], layers[1])))}
    for layer in layers[1:]:
        aligned = layers[:1] if reference == "first" else list(found)
        found[layer] = match(np.mean([between(m, layer)[found[m]] for m in aligned], axis=0))
    return {layer: found[layer] for layer in layers[1:]}


def by_cost(
    ffn_of: Callable[[int], Ffn], moments_of: Callable[[int], Mapping[str, Moments]], layers: list[int], reference: str
) -> dict[int, np.ndarray]:
    """Layer -> permutation as `by_correlation`, by the error of the reference's weights on the layer's inputs (`cost`).

    ffn_of(layer): the canonical FFN in float64. The reference `centre` is the mean FFN of the aligned layers.
    """
    found, centre = {}, dict(ffn_of(layers[0]))
    for count, layer in enumerate(layers[1:], start=1):
        own = ffn_of(layer)
        found[layer] = _assign(-cost(centre, own, moments_of(layer)).cpu().numpy())
        if reference == "centre":
            aligned = ffn.permute(own, torch.from_numpy(found[layer]).to(own["w_in"].device))
            centre = {name: value + (aligned[name] - value) / (count + 1) for name, value in centre.items()}
    return found


def cost(reference: Ffn, own: Ffn, moments: Mapping[str, Moments]) -> Tensor:
    """Entry (k, j): the error of the reference's neuron k in place of a layer's own neuron j, float64, (d_ff, d_ff).

    For rows u_k, w_j of `in` and `gate` it is E|(u_k - w_j) x|^2 on the layer's own inputs x, for columns of `out` it
    is |u_k - w_j|^2 E[h_j^2]. Each is divided by E|W x|^2, so that the matrices can be summed. A matrix whose E|W x|^2
    is 0, as in an identity block, adds nothing.
    """
    total = torch.zeros(2 * [len(own["w_in"])], dtype=own["w_in"].dtype, device=own["w_in"].device)
    for name, site in ((f"w_{role}", site) for role, site in SITE.items() if f"w_{role}" in own):
        second = moments[site].second
        if ffn.NEURON_AXIS[name] == 0:
            weighed = own[name] @ second
            own_size = (weighed * own[name]).sum(1)
            reference_size = ((reference[name] @ second) * reference[name]).sum(1)
            errors = reference_size[:, None] + own_size - 2 * reference[name] @ weighed.T
        else:
            power = second.diagonal()
            own_size = own[name].square().sum(0) * power
            overlap = reference[name].T @ own[name]
            errors = (reference[name].square().sum(0)[:, None] - 2 * overlap) * power + own_size
        if own_size.sum() > 0:
            total = total + errors / own_size.sum()
    return total


def _assign(gain: np.ndarray) -> np.ndarray:
    """The permutation p (int64) that maximises the sum of gain[k, p[k]]."""
    from scipy.optimize import linear_sum_assignment

    # A permutation takes one entry of each row and column, so their means do not change the optimum. Without them the
    # method, which starts from dual variables of zero, finds it several times faster.
    gain = gain - gain.mean(axis=1, keepdims=True)
    gain -= gain.mean(axis=0, keepdims=True)
    return linear_sum_assignment(gain, maximize=True)[1].astype(np.int64)


def matched_correlation(correlation: np.ndarray, permutation: np.ndarray) -> float:
    """The mean correlation of the pairs (k, permutation[k])."""
    return float(correlation[np.arange(len(permutation)), permutation].mean(dtype=np.float64))


def null_correlation(rows: int, neurons: int, seed: int = 0) -> float:
    """The mean matched correlation of two layers of independent Gaussian neurons.

    Matching takes the best of many chance correlations. A match of as many `rows` (tokens) and `neurons` means
    something only by its excess over this value.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = CorrelationStream()
    stream.update(*(torch.randn(rows, neurons, generator=generator) for _ in range(2)))
    correlation = stream.matrix().numpy()
    return matched_correlation(correlation, match(correlation))
