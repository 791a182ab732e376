"""Models whose groups of layers share one FFN, each layer with a delta of its own."""

import torch
from torch import Tensor

from stages.core.architecture.depth import Walk
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.surgeries import Share
from stages.core.shrinking.fitting import Fit, fit
from stages.core.shrinking.lowrank import write
from stages.core.shrinking.members import Member, Ranks, aligned, fit_role, walk_to
from stages.core.shrinking.repair import answers, least_squares, refit, repair


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
        original = walk_to(groups, view, calibration)
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
        write(linear, fitted.deltas[index])
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
