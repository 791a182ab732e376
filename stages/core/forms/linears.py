"""The linear maps that surgery puts in the place of stock ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedLinear(nn.Module):
    """A linear map whose base other layers hold too, plus a low-rank delta of its own.

    base(x) + A (B x) for x of shape (..., d_in), with A (d_out, rank) and B (rank, d_in), both zero at first. The base
    is a stock linear map.
    """

    def __init__(self, base: nn.Module, rank: int, d_in: int, d_out: int):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.zeros(d_out, rank))
        self.B = nn.Parameter(torch.zeros(rank, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + functional.linear(functional.linear(x, self.B), self.A)

    def delta(self) -> Tensor:
        """A B, shape (d_out, d_in)."""
        return self.A @ self.B

    def squared_norm(self) -> Tensor:
        """||A B||_F^2 = tr(A'A BB'), computed from (rank, rank) products only."""
        return ((self.A.T @ self.A) * (self.B @ self.B.T)).sum()


class FactoredLinear(nn.Module):
    """A linear map of low rank: A (B x) + bias, with A (d_out, rank) and B (rank, d_in), both zero at first.

    bias: (d_out,), or None.
    """

    def __init__(self, rank: int, d_in: int, d_out: int, bias: nn.Parameter | None):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(d_out, rank))
        self.B = nn.Parameter(torch.zeros(rank, d_in))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.B), self.A, self.bias)

    def delta(self) -> Tensor:
        """A B, shape (d_out, d_in)."""
        return self.A @ self.B
