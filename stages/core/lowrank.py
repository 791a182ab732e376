"""Fits of a residual matrix by a product of two thin ones, A B with A (d_out, r) and B (r, d_in)."""

import torch
from torch import Tensor


def zero(residual: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A product that is zero and can still learn: A = 0, B random (Hu et al. 2021, arXiv:2106.09685)."""
    d_out, d_in = residual.shape
    b = torch.randn(rank, d_in, generator=generator, dtype=torch.float32) / d_in**0.5
    return residual.new_zeros(d_out, rank), b.to(residual)


def svd(residual: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best product in Frobenius norm (Eckart & Young 1936), the singular values split evenly."""
    u, s, vh = torch.linalg.svd(residual.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(residual), (root[:, None] * vh[:rank]).to(residual)


DELTAS = {"zero": zero, "svd": svd}
