"""How much rank each shared matrix gets from a budget of stored parameters: water-filling.

The next rank goes where it takes most error away for what it stores (cf. reverse water-filling, Cover & Thomas,
Elements of Information Theory, 10.3.3). Errors are relative, E|(W_l - W_c) x|^2 / E|W_l x|^2, so that maps whose
outputs have other units can be compared.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.core.calibration import Calibration
from stages.core.families import family_of
from stages.core.moments import SITE
from stages.core.surgery import aligned, fit_role
from stages.core.variants import Share

Matrix = tuple[int, str]  # a layer and a role


@torch.no_grad()
def gains(model: Any, group: list[int], calibration: Calibration, spec: Share) -> dict[Matrix, Tensor]:
    """(layer, role) -> the share of its error that each further rank takes away, falling, float64."""
    found = {}
    members = aligned(model, group, calibration, spec)
    for role in family_of(model.config.model_type).matrices:
        centre = fit_role(members, role, spec.base, "none", [0] * len(members)).base
        for layer, member in zip(group, members):
            weight, root = member.ffn[f"w_{role}"], member.moments[SITE[role]].root
            left = _gram((weight - centre) @ root)
            whole = (weight @ root).square().sum()
            found[layer, role] = torch.linalg.eigvalsh(left).flip(0).clamp_min(0) / whole
    return found


def water_fill(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """layer (as a string) -> role -> rank, so that all ranks together store at most `budget` parameters.

    `shapes` gives (d_out, d_in) of each role; a rank stores d_out + d_in. No matrix gets so much rank that its two
    factors would store more than the matrix itself.
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


def _gram(matrix: Tensor) -> Tensor:
    """M M' or M'M, whichever is smaller: the squares of M's singular values are its eigenvalues."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
