"""The methods under study: layers that share one FFN, groups of layers that become one layer, and the baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.depth import Walk, keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.variants import Collapse, Drop, LowRank, Mix, Prune, Share
from stages.core.shrinking import baselines, making
from stages.core.shrinking.fitting import Fit, fit
from stages.core.shrinking.repair import answers, least_squares, refit, repair

Ranks = Mapping[str, Mapping[str, int]]  # layer, as JSON's string -> role -> rank


@dataclass(frozen=True)
class Member:
    """One layer of a group: its canonical FFN and moments, float64, in the neuron order of the group's first layer."""

    ffn: Mapping[str, Tensor]
    moments: Mapping[str, Moments]


def operate(
    view: ModelView,
    groups: list[list[int]],
    calibration: Calibration,
    spec: Any,
    ranks: Ranks | None = None,
    forms: making.Plan | None = None,
    dropped: list[int] | None = None,
) -> tuple[ModelView, Sharing]:
    """A new model, made from `view` by the method of `spec`, and its structure. `view` does not change.

    groups: the layers that belong together, for methods that share or collapse. ranks: the ranks of single matrices
    where a budget chose them; they replace the rank of `spec`. forms: what a mixture makes of each matrix. dropped:
    layers that go, where a search chose them.
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
        return making.mix(view, calibration, forms or {})
    return view.copy(), Sharing()


@torch.no_grad()
def share(
    view: ModelView, groups: list[list[int]], calibration: Calibration, spec: Share, ranks: Ranks | None = None
) -> tuple[ModelView, Sharing]:
    """A model of the same depth in which each group holds one base FFN, and each member a delta fitted by `spec.delta`.

    W_l = W_c + A_l B_l for each of the FFN's matrices, in the neuron order of the group's first layer. With
    `bias_correction`, and if the model has biases, a member's bias absorbs the mean of the remaining error. Last,
    `spec.repair` refits the output matrices of the groups, and `spec.refit_others` those of the other layers.
    """
    shared, sharing = view.copy(), Sharing(groups, spec.rank, spec.biases, ranks or {})
    install(shared, sharing)
    for group in calibration.watch(groups):
        members = aligned(view, group, calibration, spec)
        for role in view.roles:
            corrected = spec.bias_correction and f"b_{role}" in members[0].ffn
            group_ranks = [sharing.rank_of(layer, role) for layer in group]
            fitted = fit_role(members, role, spec.base, spec.delta, group_ranks, centred=corrected)
            for index, (layer, member) in enumerate(zip(group, members)):
                bias = None
                if f"b_{role}" in member.ffn:
                    bias = _bias(members, member, role, spec.biases, corrected, fitted.weight(index))
                _write(shared, layer, role, fitted, index, bias)
    if spec.reads_text and groups:
        original = _walk_to(groups, view, calibration)
        walks = original.fork(), original.fork(shared)
        if spec.repair != "none":
            for group in calibration.watch(sorted(groups)):
                if spec.delta == "none":
                    refit(original, shared, group, spec.biases == "own")
                else:
                    _refit_deltas(original, shared, sharing, group, aligned(view, group, calibration, spec), spec)
        if spec.refit_others:
            grouped = {layer for group in groups for layer in group}
            for layer in calibration.watch(range(min(grouped), view.depth)):
                if layer not in grouped:
                    repair(*walks, layer, layer, "least_squares")
    return shared, sharing


def _write(shared: ModelView, layer: int, role: str, fitted: Fit, index: int, bias: Tensor | None) -> None:
    """Copy the base and the delta of member `index`, and its bias, into a layer of the shared model."""
    linear = stock = shared.linears(layer)[role]
    if fitted.deltas[index] is not None:
        for factor, value in zip((linear.A, linear.B), fitted.deltas[index]):
            factor.copy_(value)
        stock = linear.base
    stock.weight.copy_(shared.canonical(fitted.base))
    if bias is not None:
        stock.bias.copy_(bias)


def _refit_deltas(
    original: Walk, shared: ModelView, sharing: Sharing, group: list[int], members: list[Member], spec: Share
) -> None:
    """Fit base and deltas of the output matrices anew to the hidden activations a_l that the shared matrices make.

    E|y_l - W a_l|^2 is, but for a constant, E|(W*_l - W) a_l|^2 with W*_l the least-squares matrix of layer l alone. So
    base and deltas are fitted to the W*_l on the moments of a_l. Own biases take up the mean.
    """
    weights, moments, means = [], [], []
    for layer, member in zip(group, members):
        joint = answers(original, shared, layer)
        width = member.ffn["w_out"].shape[1]
        weights.append(least_squares(member.ffn, joint)["w_out"])
        seen = joint.centred() if "b_out" in member.ffn else joint
        moments.append(Moments(seen.mean[:width], seen.second[:width, :width]))
        means.append((joint.mean[:width], joint.mean[width:]))
    fitted = fit(weights, moments, spec.base, spec.delta, [sharing.rank_of(layer, "out") for layer in group])
    for index, (layer, (hidden, answer)) in enumerate(zip(group, means)):
        bias = answer - fitted.weight(index) @ hidden if "b_out" in members[0].ffn else None
        _write(shared, layer, "out", fitted, index, bias)


def _bias(members: list[Member], member: Member, role: str, biases: str, corrected: bool, weight: Tensor) -> Tensor:
    """A member's bias: the group's mean, its own, or its own plus (W_l - W_c - A_l B_l) E[x]."""
    if biases == "shared":
        return torch.stack([m.ffn[f"b_{role}"] for m in members]).mean(0)
    own = member.ffn[f"b_{role}"]
    return own + (member.ffn[f"w_{role}"] - weight) @ member.moments[SITE[role]].mean if corrected else own


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
        original = _walk_to(groups, view, calibration)
        walks = original, original.fork(shallow)
    for group in calibration.watch(sorted(groups)):
        new_layer = kept.index(group[0])
        shallow.write(new_layer, _merged(aligned(view, group, calibration, spec), spec))
        if spec.reads_text and len(group) > 1:
            repair(*walks, group[-1], new_layer, spec.repair)
    return shallow, Sharing()


def _walk_to(groups: list[list[int]], view: ModelView, calibration: Calibration) -> Walk:
    """A walk of the calibration text through `view` that waits before the first layer of `groups`.

    A search asks for one window after the other, so the last walk is continued where it has not passed that layer.
    """
    walk, layer = calibration.walk, min(groups)[0]
    if walk is None or walk.view.model is not view.model or walk.has_passed(layer):
        walk = Walk(view, list(calibration.text()))
    for number in range(len(walk.batches)):
        walk.advance(number, layer)
    calibration.walk = walk
    return walk.fork()


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


def fit_role(members: list[Member], role: str, base: str, delta: str, ranks: list[int], centred: bool = False) -> Fit:
    """The base and deltas of one role for aligned members. `centred`: a bias absorbs the mean of the inputs."""
    moments = [member.moments[SITE[role]] for member in members]
    return fit(
        [member.ffn[f"w_{role}"] for member in members],
        [m.centred() for m in moments] if centred else moments,
        base,
        delta,
        ranks,
    )


def aligned(view: ModelView, group: list[int], calibration: Calibration, spec: Share | Collapse) -> list[Member]:
    """The layers of a group in the neuron order of the first, or each in its own order if alignment is `identity`."""
    members = []
    for layer in group:
        weights = view.read_double(layer)
        moments = dict(calibration.moments(layer))
        if spec.alignment != "identity" and layer != group[0]:
            permutation = calibration.permutation(spec.alignment, spec.reference, group[0], layer)
            weights = ffn.permute(weights, permutation)
            moments["hidden"] = moments["hidden"].permuted(permutation)
        members.append(Member(weights, moments))
    return members
