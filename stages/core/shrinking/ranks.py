"""What each rank of a delta is worth to the matrices that share a base.

Errors are relative, E|(W_l - W_c) x|^2 / E|W_l x|^2, so that maps whose outputs have other units can be compared.
"""

from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.families import family_of
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.settings.variants import Share
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.operations import aligned, fit_role


@torch.no_grad()
def gains(model: Any, group: list[int], calibration: Calibration, spec: Share) -> dict[Matrix, Tensor]:
    """(layer, role) -> the share of its error that each further rank takes away, falling, float64."""
    found = {}
    members = aligned(model, group, calibration, spec)
    for role in family_of(model.config.model_type).matrices:
        corrected = spec.bias_correction and f"b_{role}" in members[0].ffn
        centre = fit_role(members, role, spec.base, "none", [0] * len(members), centred=corrected).base
        for layer, member in zip(group, members):
            moments = member.moments[SITE[role]]
            weight, root = member.ffn[f"w_{role}"], (moments.centred() if corrected else moments).root
            found[layer, role] = budgets.gains(weight @ root, (weight - centre) @ root)
    return found
