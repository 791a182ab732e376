"""How many parameters a model may store, and how they are shared out among the matrices of its FFNs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.core import ffn
from stages.core.errors import UserError
from stages.core.families import family_of
from stages.core.variants import Like

Matrix = tuple[int, str]  # a layer and a role


def target(model: Any, wanted: int | float | Like) -> int:
    """The stored parameters that `target_parameters` asks for: a number, a share of the model's, or a window's."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(wanted, Like):
        shapes = matrices(model).values()
        saved = (wanted.size - 1) * sum(d_out * d_in for d_out, d_in in shapes)
        return total - wanted.count * (saved - wanted.size * wanted.rank * sum(map(sum, shapes)))
    return round(wanted * total) if isinstance(wanted, float) else wanted


def matrices(model: Any) -> dict[str, tuple[int, int]]:
    """Role -> (d_out, d_in) of each matrix of one layer's FFN; all layers are alike."""
    family = family_of(model.config.model_type)
    first = ffn.read(model, family, 0)
    return {role: tuple(first[f"w_{role}"].shape) for role in family.matrices}


def room(model: Any, wanted: int | float | Like) -> int:
    """What `target_parameters` leaves to the matrices of all FFNs, everything else being kept as it is.

    Raises UserError where that is nothing, or no less than they store now.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    depth = len(family_of(model.config.model_type).blocks(model))
    whole = depth * sum(d_out * d_in for d_out, d_in in matrices(model).values())
    left = target(model, wanted) - (total - whole)
    if not 0 < left < whole:
        raise UserError(
            f"params.yaml: surgery.target_parameters asks for {left + total - whole:,} parameters; smaller FFN "
            f"matrices leave {total - whole + 1:,} to {total - 1:,} of this model's {total:,}"
        )
    return left


def gains(weight: Tensor, residual: Tensor) -> Tensor:
    """The share of a matrix's error that each further rank takes away, falling: squared singular values over the whole.

    `residual` is what low rank has to fit, `weight` what an error is relative to; both are taken times a root of
    the inputs' second moments where those count.
    """
    gram = residual @ residual.T if residual.shape[0] <= residual.shape[1] else residual.T @ residual
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0) / weight.square().sum()


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
