"""Linear maps that take the place of a stock one: a shared base with a low-rank delta, and a low-rank product alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedLinear(nn.Module):
    """A linear map with a base that other layers hold too, plus a low-rank delta of its own.

    Computes base(x) + A (B x) for x of shape (..., d_in), with A (d_out, rank) and B (rank, d_in).
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
        """The squared Frobenius norm of A B, from r x r products only: tr(A'A BB')."""
        return ((self.A.T @ self.A) * (self.B @ self.B.T)).sum()


class FactoredLinear(nn.Module):
    """A linear map of low rank: A (B x) + bias, with A (d_out, rank) and B (rank, d_in); bias may be None."""

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
