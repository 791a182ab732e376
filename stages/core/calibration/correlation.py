"""Pearson correlations of every neuron of one layer with every neuron of another.

Every layer is standardised once, with statistics in float64. The correlations of two layers are then one product.
"""

import torch
from torch import Tensor

SHIFTED = "shifted"  # the name of correlations with a layer at other tokens
SHIFT = 1009  # tokens; a prime, so that rows of no length have their first token at the first token of others
TILE = 512  # columns that are there in float64 at once


def standardised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The columns less their means, at length 1, and a mask of the columns that never vary, which become 0.

    rows: (tokens, d); the first result has its shape and dtype, the mask is bool, (d,). A column that varies by no more
    than rounding counts as one that never varies.
    """
    found, dead = torch.empty_like(rows), []
    for start in range(0, rows.shape[1], TILE):
        part = rows[:, start : start + TILE].double()
        mean = part.mean(0)
        part -= mean
        squares = part.square().sum(0)
        still = squares <= len(rows) * (1e-12 * (1.0 + mean.abs())) ** 2
        found[:, start : start + TILE] = part * torch.where(still, 0.0, squares.clamp_min(1e-300).rsqrt())
        dead.append(still)
    return found, torch.cat(dead)


def shifted(rows: Tensor, tokens: int = SHIFT) -> Tensor:
    """Standardised rows moved on by so many tokens, or by half of them where they are few; the last become the first.

    They vary from token to token as before, but have nothing to do with what another layer holds of the same token.
    """
    return rows.roll(min(tokens, len(rows) // 2), 0)


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """The correlations of two standardised layers, (d_one, d_other), within [-1, 1], in their dtype.

    In float32 they are off by less than 1e-5 (about 1e-7 where neurons are independent).
    """
    return (one.T @ other).clamp_(-1.0, 1.0)
