"""How a number of parameters is shared out among the matrices of a model's FFNs."""

from collections.abc import Mapping

import torch
from torch import Tensor

Matrix = tuple[int, str]  # a layer and a role


def gains(weight: Tensor, residual: Tensor) -> Tensor:
    """The share of a matrix's error that each further rank takes away, falling: squared singular values over the whole.

    `residual` is what low rank has to fit, `weight` what an error is relative to; both are taken times a root of
    the inputs' second moments where those count. Where the weight is 0, so is every share.
    """
    gram = residual @ residual.T if residual.shape[0] <= residual.shape[1] else residual.T @ residual
    taken, whole = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0), weight.square().sum()
    return taken / whole if whole > 0 else torch.zeros_like(taken)


def water_fill(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """layer (as a string) -> role -> rank, so that all ranks together store at most `budget` parameters.

    The next rank goes where it takes most error away for what it stores (cf. reverse water-filling, Cover & Thomas,
    Elements of Information Theory, 10.3.3). `shapes` gives (d_out, d_in) of each role; a rank stores d_out + d_in.
    No matrix gets so much rank that its two factors would store more than the matrix itself.
    """
    steps = sorted(
        (
            (gain / sum(shapes[role]), layer, role)
            for (layer, role), values in gains.items()
            for gain in values.tolist()
        ),
        reverse=True,
    )
    ranks = {str(layer): dict.fromkeys(shapes, 0) for layer, _ in gains}
    for _, layer, role in steps:
        (d_out, d_in), rank = shapes[role], ranks[str(layer)][role]
        if d_out + d_in <= budget and (rank + 1) * (d_out + d_in) <= d_out * d_in:
            ranks[str(layer)][role] += 1
            budget -= d_out + d_in
    return ranks
