"""A model whose FFN matrices have the forms of a plan, some of whose layers share one FFN, and others are gone."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.architecture.depth import keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.surgeries import Share
from stages.core.shrinking.lowrank import weighted, write
from stages.core.shrinking.members import Ranks
from stages.core.shrinking.options import DENSE, Form, read, sparse, stored_by
from stages.core.shrinking.refitting import refit
from stages.core.shrinking.sharing import share

Plan = dict[str, dict[str, Form]]  # layer, as JSON's string -> role -> form


# How layers of a mixture share.
SHARED = Share(method="share", delta="joint", rank=8, bias_correction=True, gains="moving_base")


@dataclass(frozen=True)
class Layers:
    """What becomes of whole layers: those of a group share one FFN, with deltas of `ranks`, and some are gone."""

    groups: list[list[int]] = field(default_factory=list)
    ranks: Ranks = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


NO_LAYERS = Layers()


@torch.no_grad()
def mix(
    view: ModelView, calibration: Calibration, plan: Plan, layers: Layers = NO_LAYERS, again: bool = False
) -> tuple[ModelView, Sharing]:
    """The model whose matrices have the forms of `plan`; those that it does not name stay dense.

    Biases, where there are any, take up the mean of what a form leaves, (W - W') E[x], unless the form says
    `corrected: False`. A layer of a group, or one that is gone, may have no form in the plan; the layers of the
    structure are numbered without those that are gone.
    again: last, output matrices are fitted again, in the changed model's own stream (see `refitting.refit`).
    """
    original, kept = view, [layer for layer in range(view.depth) if layer not in layers.gone]
    if layers.gone:
        new = {layer: number for number, layer in enumerate(kept)}
        view, calibration = keep_layers(view, kept), _renumbered(calibration, kept)
        plan = {str(new[int(layer)]): forms for layer, forms in plan.items()}
        ranks = {str(new[int(layer)]): roles for layer, roles in layers.ranks.items()}
        layers = Layers([[new[layer] for layer in group] for group in layers.groups], ranks)
    if layers.groups:
        changed, sharing = share(view, layers.groups, calibration, SHARED, layers.ranks)
    else:
        changed, sharing = view.copy(), Sharing()
    alone = Sharing(**_sizes(plan))
    install(changed, alone)
    sharing = replace(sharing, ranks={**sharing.ranks, **alone.ranks}, factored=alone.factored, kept=alone.kept)
    for layer, role, form in ((int(layer), role, form) for layer in plan for role, form in plan[layer].items()):
        if form["form"] == "dense":
            continue
        corrected = form.get("corrected", True)
        weight, moments = read(view, calibration, layer, role, corrected)
        linear = changed.linears(layer)[role]
        if form["form"] == "sparse":
            matrix = sparse(weight, moments, form["kept"], form["score"], form.get("refit", False))
            linear.store(matrix.to(linear.values.dtype))
            new = linear.matrix()
        else:
            if form["rank"]:
                write(linear, weighted(weight, form["rank"], moments))
            new = linear.delta()
        if corrected:
            correct(linear, weight - new.double(), view, calibration, layer, role)
    if again:
        shared = {layer for group in sharing.groups for layer in group}
        refit(original, changed, kept, shared, plan, list(calibration.text()))
    return changed, sharing


def correct(linear: nn.Module, left: Tensor, view: ModelView, calibration: Calibration, layer: int, role: str) -> None:
    """Let a changed map's bias, if it has one, take up the mean of what its matrix leaves: b + (W - W') E[x]."""
    if linear.bias is not None:
        own, mean = view.read_double(layer)[f"b_{role}"], calibration.moments(layer)[SITE[role]].mean
        linear.bias.copy_(own + left @ mean)


def _renumbered(calibration: Calibration, kept: list[int]) -> Calibration:
    """The calibration of a model of the layers `kept`, by their new numbers."""
    return replace(
        calibration,
        permutation=lambda alignment, reference, *pair: calibration.permutation(
            alignment, reference, *(kept[layer] for layer in pair)
        ),
        moments=lambda layer: calibration.moments(kept[layer]),
    )


def shares(view: ModelView, plan: Plan, layers: Layers = NO_LAYERS) -> dict[str, dict[str, float]]:
    """Layer -> role -> what a plan stores of each FFN matrix, as a share of its parameters, masks included.

    Each layer of a group has its own part of the base.
    """
    bases = {layer: 1 / len(group) for group in layers.groups for layer in group}

    def share_of(layer: int, role: str, d_out: int, d_in: int) -> float:
        if layer in layers.gone:
            return 0.0
        if layer in bases:
            return bases[layer] + layers.ranks[str(layer)][role] * (d_out + d_in) / (d_out * d_in)
        return stored_by(plan.get(str(layer), {}).get(role, DENSE), d_out, d_in) / (d_out * d_in)

    return {
        str(layer): {role: share_of(layer, role, *shape) for role, shape in view.shape.matrices_of(layer).items()}
        for layer in range(view.depth)
    }


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
