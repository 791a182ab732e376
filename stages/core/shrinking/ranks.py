"""How much each rank of a delta takes away from the error of the matrices that share a base.

Errors are relative, E|(W_l - W_c) x|^2 / E|W_l x|^2, so that matrices whose outputs have other units can be compared.
"""

import torch
from torch import Tensor

from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.settings.variants import Share
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.operations import aligned, fit_role


@torch.no_grad()
def gains(view: ModelView, group: list[int], calibration: Calibration, spec: Share) -> dict[Matrix, Tensor]:
    """(layer, role) -> the relative error that each further rank takes away: float64, falling, (min(d_out, d_in),)."""
    found = {}
    members = aligned(view, group, calibration, spec)
    for role in view.roles:
        corrected = spec.bias_correction and f"b_{role}" in members[0].ffn
        centre = fit_role(members, role, spec.base, "none", [0] * len(members), centred=corrected).base
        for layer, member in zip(group, members):
            moments = member.moments[SITE[role]]
            weight, root = member.ffn[f"w_{role}"], (moments.centred() if corrected else moments).root
            found[layer, role] = budgets.gains(weight @ root, (weight - centre) @ root)
    return found
