"""How a budget of parameters is allotted to the matrices of a model's FFNs."""

from collections.abc import Mapping

import torch
from torch import Tensor

Matrix = tuple[int, str]  # a layer and a role


def gains(weight: Tensor, residual: Tensor) -> Tensor:
    """The relative error that each further rank of a fit takes away: sigma_i^2 / |W|_F^2, float64, falling.

    sigma_i are the singular values of `residual`, which low rank is to fit; W is `weight`, (d_out, d_in) both. For
    errors on inputs, both come multiplied by a root of the inputs' second moments. All are 0 where W is.
    """
    gram = residual @ residual.T if residual.shape[0] <= residual.shape[1] else residual.T @ residual
    taken, whole = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0), weight.square().sum()
    return taken / whole if whole > 0 else torch.zeros_like(taken)


def water_fill(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """Layer, as a string -> role -> rank. All ranks together store at most `budget` parameters.

    The next rank goes to the matrix where it takes away most error per stored parameter (cf. reverse water-filling,
    Cover & Thomas, Elements of Information Theory, 10.3.3). shapes: role -> (d_out, d_in); a rank stores d_out + d_in.
    No matrix gets a rank whose two factors store more than the matrix itself.
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
