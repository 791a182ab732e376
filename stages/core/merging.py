"""One base weight for several aligned layers."""

import torch
from torch import Tensor


def first(weights: list[Tensor]) -> Tensor:
    """The first layer's weight."""
    return weights[0]


def mean(weights: list[Tensor]) -> Tensor:
    """The element-wise mean, accumulated in float64."""
    return torch.stack([weight.double() for weight in weights]).mean(0).to(weights[0])


BASES = {"first": first, "mean": mean}
