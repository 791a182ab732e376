"""A model whose FFN matrices have the forms of a plan."""

from typing import Any

import torch

from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.forms.counting import mask_size
from stages.core.forms.structure import Sharing, install
from stages.core.shrinking.lowrank import weighted
from stages.core.shrinking.options import DENSE, Form, read, sparse

Plan = dict[str, dict[str, Form]]  # layer, as JSON's string -> role -> form


@torch.no_grad()
def mix(view: ModelView, calibration: Calibration, plan: Plan) -> tuple[ModelView, Sharing]:
    """The model whose matrices have the forms of `plan`; those that it does not name stay dense.

    Biases, where there are any, take up the mean of what a form leaves, (W - W') E[x].
    """
    changed, sharing = view.copy(), Sharing(**_sizes(plan))
    install(changed, sharing)
    for layer, role, form in ((int(layer), role, form) for layer in plan for role, form in plan[layer].items()):
        if form["form"] == "dense":
            continue
        weight, moments = read(view, calibration, layer, role)
        linear = changed.linears(layer)[role]
        if form["form"] == "sparse":
            matrix = sparse(weight, moments, form["kept"], form["score"], form.get("refit", False))
            linear.store(matrix.to(linear.values.dtype))
            new = linear.matrix()
        else:
            if form["rank"]:
                for factor, value in zip((linear.A, linear.B), weighted(weight, form["rank"], moments)):
                    factor.copy_(value)
            new = linear.delta()
        if linear.bias is not None:
            own, mean = view.read_double(layer)[f"b_{role}"], calibration.moments(layer)[SITE[role]].mean
            linear.bias.copy_(own + (weight - new.double()) @ mean)
    return changed, sharing


def shares(view: ModelView, plan: Plan) -> dict[str, dict[str, float]]:
    """Layer -> role -> what a plan stores of each FFN matrix, as a share of its parameters, masks included."""
    return {
        str(layer): {
            role: _stored(plan.get(str(layer), {}).get(role, DENSE), *shape) / (shape[0] * shape[1])
            for role, shape in view.shape.matrices_of(layer).items()
        }
        for layer in range(view.depth)
    }


def _stored(form: Form, d_out: int, d_in: int) -> int:
    if form["form"] == "low_rank":
        return form["rank"] * (d_out + d_in)
    return form["kept"] + mask_size(d_out * d_in) if form["form"] == "sparse" else d_out * d_in


def _sizes(plan: Plan) -> dict[str, Any]:
    """What `Sharing` says of a plan: the ranks of what is factored, and how many entries masked matrices keep."""
    ranks: dict[str, dict[str, int]] = {}
    kept: dict[str, dict[str, int]] = {}
    for layer, roles in plan.items():
        for role, form in roles.items():
            if form["form"] == "low_rank":
                ranks.setdefault(layer, {})[role] = form["rank"]
            elif form["form"] == "sparse":
                kept.setdefault(layer, {})[role] = form["kept"]
    return {"ranks": ranks, "factored": bool(ranks), "kept": kept}
