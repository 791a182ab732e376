"""The operations under study: layers that share one FFN, and groups of layers that become one."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.depth import Walk, keep_layers
from stages.core.architecture.families import family_of
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.variants import Collapse, Drop, LowRank, Prune, Share
from stages.core.shrinking import baselines
from stages.core.shrinking.fitting import Fit, fit
from stages.core.shrinking.repair import refit, repair

Ranks = Mapping[str, Mapping[str, int]]  # layer, as JSON's string -> role -> rank


@dataclass(frozen=True)
class Member:
    """One layer of a group: its canonical FFN and moments, in the neuron order of the group's first layer."""

    ffn: Mapping[str, Tensor]
    moments: Mapping[str, Moments]


def operate(model: Any, groups: list[list[int]], calibration: Calibration, spec: Any, ranks: Ranks | None = None):
    """A new model with `groups` of layers treated as `spec` says, and its `Sharing`; `model` stays as it is.

    `ranks` of single matrices, where a budget chose them, have their say over the rank of `spec`.
    """
    if isinstance(spec, Share):
        return share(model, groups, calibration, spec, ranks)
    if isinstance(spec, Collapse):
        return collapse(model, groups, calibration, spec)
    if isinstance(spec, Drop):
        return baselines.drop(model, calibration, spec)
    if isinstance(spec, LowRank):
        return baselines.low_rank(model, calibration, spec, ranks)
    if isinstance(spec, Prune):
        return baselines.prune(model, spec)
    return copy.deepcopy(model), Sharing()


@torch.no_grad()
def share(
    model: Any, groups: list[list[int]], calibration: Calibration, spec: Share, ranks: Ranks | None = None
) -> tuple[Any, Sharing]:
    """Every group holds one base FFN weight; a member's delta starts as `spec.delta` fits it.

    W_l = W_c + A_l B_l for each of the FFN's matrices, in the neuron order of the group's first layer. With
    `bias_correction`, and where the model has biases, a member's bias takes up the mean of the error that is left.
    In the end the output matrices are repaired where `spec` asks for it.
    """
    family, shared = family_of(model.config.model_type), copy.deepcopy(model)
    sharing = Sharing(groups, spec.rank, spec.biases, ranks or {})
    install(shared, family, sharing)
    for group in calibration.watch(groups):
        members = aligned(model, group, calibration, spec)
        for role in family.matrices:
            corrected = spec.bias_correction and f"b_{role}" in members[0].ffn
            wanted = [sharing.rank_of(layer, role) for layer in group]
            fitted = fit_role(members, role, spec.base, spec.delta, wanted, centred=corrected)
            for index, (layer, member) in enumerate(zip(group, members)):
                linear = family.linears(shared, layer)[role]
                stock = linear
                if fitted.deltas[index] is not None:
                    for factor, value in zip((linear.A, linear.B), fitted.deltas[index]):
                        factor.copy_(value)
                    stock = linear.base
                stock.weight.copy_(fitted.base.T if family.transposed else fitted.base)
                if stock.bias is not None:
                    stock.bias.copy_(_bias(members, member, role, spec.biases, corrected, fitted.weight(index)))
    if spec.reads_text:
        original = _before(groups, model, calibration)
        for group in calibration.watch(sorted(groups)):
            refit(original, shared, group, spec.biases == "own")
    return shared, sharing


def _bias(members: list[Member], member: Member, role: str, biases: str, corrected: bool, weight: Tensor) -> Tensor:
    """A member's bias: the group's mean, its own, or its own plus (W_l - W_c - A_l B_l) E[x]."""
    if biases == "shared":
        return torch.stack([m.ffn[f"b_{role}"] for m in members]).mean(0)
    own = member.ffn[f"b_{role}"]
    return own + (member.ffn[f"w_{role}"] - weight) @ member.moments[SITE[role]].mean if corrected else own


@torch.no_grad()
def collapse(model: Any, groups: list[list[int]], calibration: Calibration, spec: Collapse) -> tuple[Any, Sharing]:
    """Every group becomes its first layer with the group's merged FFN; the model loses the other layers.

    Groups are merged, and repaired where `spec` asks for it, from the first to the last.
    """
    family = family_of(model.config.model_type)
    gone = {layer for group in groups for layer in group[1:]}
    kept = [layer for layer in range(len(family.blocks(model))) if layer not in gone]
    shallow = keep_layers(model, family, kept)
    if spec.reads_text:
        start = _before(groups, model, calibration)
        walks = start, start.fork(shallow)
    for group in calibration.watch(sorted(groups)):
        place = kept.index(group[0])
        ffn.write(shallow, family, place, _merged(aligned(model, group, calibration, spec), spec))
        if spec.reads_text and len(group) > 1:
            repair(*walks, group[-1], place, spec.repair)
    return shallow, Sharing()


def _before(groups: list[list[int]], model: Any, calibration: Calibration) -> Walk:
    """The calibration text on its way through `model`, not beyond the first layer of `groups`.

    The last one that was asked for goes on where it can: a search asks for one window after the other.
    """
    walk, layer = calibration.walk, min(groups)[0]
    if walk is None or walk.model is not model or walk.is_beyond(layer):
        walk = Walk(model, family_of(model.config.model_type), list(calibration.text()))
    for number in range(len(walk.batches)):
        walk.on(number, layer)
    calibration.walk = walk
    return walk.fork()


def _merged(members: list[Member], spec: Collapse) -> dict[str, Tensor]:
    """One canonical FFN for aligned members: the first one's, or the mean, its matrices by the named base.

    `differences` adds up how all others differ from the first (Yang et al. 2024, arXiv:2402.11187, there for whole
    layers): an average of them, times their number, around the first.
    """
    first = members[0].ffn
    mean = {name: torch.stack([member.ffn[name] for member in members]).mean(0) for name in first}
    if spec.repair == "differences":
        return {name: first[name] + len(members) * (mean[name] - first[name]) for name in first}
    biases = first if spec.base == "first" else mean
    roles = [name.removeprefix("w_") for name in first if name.startswith("w_")]
    return biases | {f"w_{role}": fit_role(members, role, spec.base, "none", [0] * len(members)).base for role in roles}


def fit_role(members: list[Member], role: str, base: str, delta: str, ranks: list[int], centred: bool = False) -> Fit:
    """The base and deltas of one role for aligned members."""
    moments = [member.moments[SITE[role]] for member in members]
    return fit(
        [member.ffn[f"w_{role}"] for member in members],
        [m.centred() for m in moments] if centred else moments,
        base,
        delta,
        ranks,
    )


def aligned(model: Any, group: list[int], calibration: Calibration, spec: Share | Collapse) -> list[Member]:
    """The group's layers in float64, each in the neuron order of the first (or as it is: `identity`)."""
    family, members = family_of(model.config.model_type), []
    for layer in group:
        weights = {name: tensor.double() for name, tensor in ffn.read(model, family, layer).items()}
        moments = dict(calibration.moments(layer))
        if spec.alignment != "identity" and layer != group[0]:
            permutation = calibration.permutation(spec.alignment, spec.reference, group[0], layer)
            weights = ffn.permute(weights, permutation)
            moments["hidden"] = moments["hidden"].permuted(permutation)
        members.append(Member(weights, moments))
    return members
