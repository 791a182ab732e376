"""Linear maps that a stock model holds as one matrix, apart while a view works on the model."""

import torch
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """Several linear maps of the same input; the outputs stand one after the other.

    Each is a child, named by its role, and may become shared or factored on its own.
    """

    def __init__(self, linear: nn.Linear, roles: tuple[str, ...]):
        """linear: the stock map, whose rows are split evenly."""
        super().__init__()
        weights = linear.weight.detach().chunk(len(roles))
        biases = [None] * len(roles) if linear.bias is None else linear.bias.detach().chunk(len(roles))
        for role, weight, bias in zip(roles, weights, biases):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            part.weight = nn.Parameter(weight.clone())
            if bias is not None:
                part.bias = nn.Parameter(bias.clone())
            self.add_module(role, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)
