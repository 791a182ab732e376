"""One base weight (d_out, d_in) for aligned layers, from their weights and the moments of their inputs, float64."""

import torch
from torch import Tensor

from stages.core.calibration.moments import Moments, cholesky


def first(weights: list[Tensor], moments: list[Moments]) -> Tensor:
    """The first layer's weight."""
    return weights[0]


def mean(weights: list[Tensor], moments: list[Moments]) -> Tensor:
    """The element-wise mean."""
    return torch.stack(weights).mean(0)


def regression(weights: list[Tensor], moments: list[Moments]) -> Tensor:
    """(sum_l W_l C_l)(sum_l C_l)^-1, which minimises sum_l E|(W_l - W) x_l|^2.

    RegMean (Jin et al. 2022, arXiv:2212.09849), there for models, here for layers.
    """
    grams = [m.ridged() for m in moments]
    right = sum(weight @ gram for weight, gram in zip(weights, grams))
    return torch.cholesky_solve(right.T, cholesky(sum(grams))).T


BASES = {"first": first, "mean": mean, "regression": regression}
