"""The methods under study: layers that share one FFN, groups of layers that become one layer, and the baselines."""

from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.depth import keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.settings.surgeries import Collapse, Drop, LowRank, Mix, Prune, Share
from stages.core.shrinking import baselines, making
from stages.core.shrinking.members import Member, Ranks, aligned, fit_role, walk_to
from stages.core.shrinking.repair import repair
from stages.core.shrinking.sharing import share


def operate(
    view: ModelView,
    groups: list[list[int]],
    calibration: Calibration,
    spec: Any,
    ranks: Ranks | None = None,
    forms: making.Plan | None = None,
    dropped: list[int] | None = None,
    again: bool = False,
) -> tuple[ModelView, Sharing]:
    """A new model, made from `view` by the method of `spec`, and its structure. `view` does not change.

    groups: the layers that belong together, for methods that share or collapse. ranks: the ranks of single matrices
    where a budget chose them; they replace the rank of `spec`. forms: what a mixture makes of each matrix. dropped:
    layers that go, where a search chose them. again: whether a mixture is fitted again (see `making.mix`).
    """
    if isinstance(spec, Share):
        return share(view, groups, calibration, spec, ranks)
    if isinstance(spec, Collapse):
        return collapse(view, groups, calibration, spec)
    if isinstance(spec, Drop):
        return baselines.drop(view, calibration, spec, dropped)
    if isinstance(spec, LowRank):
        return baselines.low_rank(view, calibration, spec, ranks)
    if isinstance(spec, Prune):
        return baselines.prune(view, calibration, spec)
    if isinstance(spec, Mix):
        return making.mix(view, calibration, forms or {}, making.Layers(groups, ranks or {}, dropped or []), again)
    return view.copy(), Sharing()


@torch.no_grad()
def collapse(
    view: ModelView, groups: list[list[int]], calibration: Calibration, spec: Collapse
) -> tuple[ModelView, Sharing]:
    """A shallower model in which each group is its first layer with the group's merged FFN.

    Groups are merged and repaired from the first to the last, so that a repair sees what earlier groups have changed.
    """
    removed = {layer for group in groups for layer in group[1:]}
    kept = [layer for layer in range(view.depth) if layer not in removed]
    shallow = keep_layers(view, kept)
    if spec.reads_text:
        original = walk_to(groups, view, calibration)
        walks = original, original.fork(shallow)
    for group in calibration.watch(sorted(groups)):
        new_layer = kept.index(group[0])
        shallow.write(new_layer, _merged(aligned(view, group, calibration, spec), spec))
        if spec.reads_text and len(group) > 1:
            repair(*walks, group[-1], new_layer, spec.repair)
    return shallow, Sharing()


def _merged(members: list[Member], spec: Collapse) -> dict[str, Tensor]:
    """One canonical FFN for aligned members: matrices by the named base, biases of the first member or their mean.

    With repair `differences` it is W_1 + sum_l (W_l - W_1) (RDSC of LaCo, Yang et al. 2024, arXiv:2402.11187, there for
    whole layers).
    """
    first = members[0].ffn
    mean = {name: torch.stack([member.ffn[name] for member in members]).mean(0) for name in first}
    if spec.repair == "differences":
        return {name: first[name] + len(members) * (mean[name] - first[name]) for name in first}
    biases = first if spec.base == "first" else mean
    roles = [name.removeprefix("w_") for name in first if name.startswith("w_")]
    return biases | {f"w_{role}": fit_role(members, role, spec.base, "none", [0] * len(members)).base for role in roles}
