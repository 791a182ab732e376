"""Fits of a residual matrix by a low-rank product A B, with A (d_out, rank) and B (rank, d_in).

Each fit takes the residual R = W_l - W_c, (d_out, d_in), the rank, and the moments of the linear map's input. All are
float64.
"""

import torch
from torch import Tensor, nn

from stages.core.calibration.moments import Moments


def zero(residual: Tensor, rank: int, moments: Moments) -> tuple[Tensor, Tensor]:
    """A = 0 and B random: the product is zero and has a gradient (LoRA, Hu et al. 2021, arXiv:2106.09685)."""
    d_out, d_in = residual.shape
    b = torch.randn(rank, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / d_in**0.5
    return residual.new_zeros(d_out, rank), b.to(residual.device)


def svd(residual: Tensor, rank: int, moments: Moments) -> tuple[Tensor, Tensor]:
    """The best product in Frobenius norm (Eckart & Young 1936)."""
    u = _leading(residual, rank)
    return balanced(u, u.T @ residual)


def weighted(residual: Tensor, rank: int, moments: Moments) -> tuple[Tensor, Tensor]:
    """The product that minimises E|(R - A B) x|^2: A B = U U'R, U the leading left singular vectors of R C^(1/2).

    U are the leading eigenvectors of R C R'. A tall R needs a root of C: its Cholesky factor is one up to a rotation on
    the right, which does not change U.
    """
    if residual.shape[0] <= residual.shape[1]:
        weighed = (residual @ moments.second).add_(residual, alpha=moments.ridge().item())
        u = torch.linalg.eigh(weighed @ residual.T).eigenvectors[:, -rank:]
    else:
        u = _leading(residual @ moments.root, rank)
    return balanced(u, u.T @ residual)


def shared_basis(weights: list[Tensor], rank: int, moments: list[Moments]) -> tuple[list[Tensor], Tensor]:
    """One B (rank, d_in) for several layers and an A_l (d_out, rank) for each: Basis Sharing.

    B minimises sum_l E|(W_l - A_l B) x|^2 over inputs x of all layers together, whose second moments are C = sum_l C_l:
    B = V'C^(-1/2) and A_l = W_l C^(1/2) V, V the leading right singular vectors of the stacked W_l C^(1/2) (Wang et al.
    2024, arXiv:2410.03765). Column k of the stacked A_l and row k of B are of equal size.
    """
    root, stacked = summed(moments).root, torch.cat(weights)
    reduced = stacked @ root
    v = torch.linalg.eigh(reduced.T @ reduced).eigenvectors[:, -rank:].flip(1)
    a, b = reduced @ v, torch.linalg.solve_triangular(root.T, v, upper=True).T
    scale = (b.norm(dim=1) / a.norm(dim=0).clamp_min(torch.finfo(a.dtype).tiny)).sqrt()
    return list((a * scale).split([len(weight) for weight in weights])), b / scale[:, None]


def write(linear: nn.Module, product: tuple[Tensor, Tensor]) -> None:
    """Copy A and B into a linear map that holds such factors."""
    for factor, value in zip((linear.A, linear.B), product):
        factor.copy_(value)


def summed(moments: list[Moments]) -> Moments:
    """The sum of the second moments of several layers' inputs."""
    return Moments(torch.zeros_like(moments[0].mean), torch.stack([m.second for m in moments]).sum(0))


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors, from the smaller Gram matrix, which is many times faster than an SVD."""
    if matrix.shape[0] <= matrix.shape[1]:
        return torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]
    return torch.linalg.qr(matrix @ torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:]).Q


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with both factors of equal size in every singular direction, so that both learn alike."""
    q, r = torch.linalg.qr(b.T)
    u, s, vh = torch.linalg.svd(r.T)
    root = s.sqrt()
    return a @ (u * root), (root[:, None] * vh) @ q.T


DELTAS = {"zero": zero, "svd": svd, "weighted": weighted}
