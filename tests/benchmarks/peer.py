"""What we are compared with, restated plainly.

`merge_window` is the algorithm of Verma et al. 2025, Merging Feed-Forward Sublayers for Compressed Transformers
(repository nverma1/merging-ffs-compression): for every batch the full products of all pairs of layers, on the CPU, then
covariances, correlations, an assignment for each layer, permutation matrices, and the mean.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def merge_window(seen: list[list[Tensor]], weights: list[dict[str, Tensor]]) -> tuple[list[np.ndarray], dict]:
    """The permutations of all layers but the first, and the merged FFN.

    seen: for each batch the activations of each layer, (tokens, d_ff). weights: each layer's w_in (d_ff, d), b_in and
    w_out (d, d_ff).
    """
    count, width = len(seen[0]), seen[0][0].shape[1]
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    products = {pair: torch.zeros(width, width) for pair in pairs}
    sums, rows = [torch.zeros(width) for _ in range(count)], 0
    for batch in seen:
        rows += len(batch[0])
        for i in range(count):
            sums[i] += batch[i].sum(0)
            for j in range(i, count):
                products[i, j] += batch[i].T @ batch[j]
    means = [total / rows for total in sums]
    covariances = {(i, j): products[i, j].div(rows) - torch.outer(means[i], means[j]) for i, j in pairs}
    deviations = [covariances[i, i].diagonal().sqrt().numpy() for i in range(count)]
    correlations = {}
    for i, j in pairs:
        scale = np.clip(np.nan_to_num(np.outer(deviations[i], deviations[j])), 1e-7, None)
        correlations[i, j] = covariances[i, j].numpy() / scale
    orders = [linear_sum_assignment(correlations[0, j], maximize=True)[1] for j in range(1, count)]
    merges = [torch.eye(width)] + [torch.eye(width)[order] for order in orders]
    aligned = [
        {"w_in": merge @ own["w_in"], "b_in": merge @ own["b_in"], "w_out": own["w_out"] @ merge.T}
        for merge, own in zip(merges, weights)
    ]
    return orders, {name: sum(own[name] for own in aligned) / count for name in aligned[0]}


def correlations(layers: list[np.ndarray]) -> np.ndarray:
    """np.corrcoef of all neurons of several layers, (tokens, d_ff) each."""
    return np.corrcoef(np.hstack(layers), rowvar=False)
