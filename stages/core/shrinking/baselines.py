"""Baselines of the same size: fewer layers, low-rank FFN matrices, or sparse ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.core.architecture import targets
from stages.core.architecture.depth import influence, keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.variants import Drop, LowRank, Prune
from stages.core.shrinking import budgets
from stages.core.shrinking.lowrank import DELTAS


def drop(view: ModelView, calibration: Calibration, spec: Drop) -> tuple[ModelView, Sharing]:
    """The model without its layers of least block influence: `spec.layers` of them, or the fewest for the target.

    Men et al. 2024, ShortGPT (arXiv:2403.03853).
    """
    order = influence(view, calibration.watch(calibration.text())).argsort(stable=True).tolist()
    count = spec.layers
    if count is None:
        count = targets.layers(view.shape, spec.target_parameters)
    return keep_layers(view, sorted(order[count:])), Sharing()


@torch.no_grad()
def low_rank(
    view: ModelView, calibration: Calibration, spec: LowRank, ranks: Mapping[str, Mapping[str, int]] | None = None
) -> tuple[ModelView, Sharing]:
    """FFN matrices W as products A B, fitted to W itself or weighted by the second moments of its inputs.

    ranks: layer, as JSON's string -> role -> rank, without the matrices that stay dense; by default what fills the
    budget of `spec`: with ranks `filled` a matrix stays dense where that leaves less error for as many parameters. With
    `bias_correction`, and if the model has biases, b absorbs the mean error (W - A B) E[x].
    """
    factored = view.copy()
    sharing = Sharing(ranks=ranks or _ranks(view, calibration, spec), factored=True)
    install(factored, sharing)
    for layer in calibration.watch(range(view.depth)):
        original, moments = view.read_double(layer), calibration.moments(layer)
        for role, linear in factored.linears(layer).items():
            if role not in sharing.ranks[str(layer)]:
                continue
            weight, inputs = original[f"w_{role}"], moments[SITE[role]]
            corrected = spec.bias_correction and linear.bias is not None
            if rank := sharing.rank_of(layer, role):
                product = DELTAS[spec.fit](weight, rank, inputs.centred() if corrected else inputs)
                for factor, value in zip((linear.A, linear.B), product):
                    factor.copy_(value)
            if corrected:
                linear.bias.copy_(original[f"b_{role}"] + (weight - linear.delta().double()) @ inputs.mean)
    return factored, sharing


def _ranks(view: ModelView, calibration: Calibration, spec: LowRank) -> dict[str, dict[str, int]]:
    """The ranks that fill the budget: the same share of every matrix, or by `budgets.factor_or_keep`."""
    shape, layers = view.shape, range(view.depth)
    shapes, room = shape.matrices, targets.room(shape, spec.target_parameters)
    if spec.ranks == "equal":
        share = room / (len(layers) * shape.ffn_matrices)
        alike = {role: int(share * d_out * d_in / (d_out + d_in)) for role, (d_out, d_in) in shapes.items()}
        return {str(layer): dict(alike) for layer in layers}
    gains = {}
    for layer in layers:
        original, moments = view.read_double(layer), calibration.moments(layer)
        for role in shapes:
            weight = original[f"w_{role}"]
            if spec.fit == "weighted":
                inputs = moments[SITE[role]]
                corrected = spec.bias_correction and f"b_{role}" in original
                weight = weight @ (inputs.centred() if corrected else inputs).root
            gains[layer, role] = budgets.gains(weight, weight)
    return budgets.factor_or_keep(gains, shapes, room)


@torch.no_grad()
def prune(view: ModelView, calibration: Calibration, spec: Prune) -> tuple[ModelView, Sharing]:
    """Pruning, unstructured: the entries of the FFN matrices with the largest scores stay, the others are zero.

    As many stay as the target allows: the same share of every row or matrix, or the largest of all together. The score
    is |W_ij| (Han et al. 2015, arXiv:1506.02626), or |W_ij| E[x_j^2]^(1/2), the size of what the entry adds to output
    i (Sun et al. 2023, Wanda, arXiv:2306.11695, which compares the entries of a row).
    """
    sparse = view.copy()
    found = [
        (linear.weight, _scores(sparse, layer, role, calibration, spec))
        for layer in range(sparse.depth)
        for role, linear in sparse.linears(layer).items()
    ]
    share = targets.room(view.shape, spec.target_parameters) / sum(weight.numel() for weight, _ in found)
    rows = [scores.flatten()[None] if spec.scope == "matrix" else sparse.canonical(scores) for _, scores in found]
    if spec.scope == "all":
        masks = _largest(torch.cat([scores.flatten() for scores in rows])[None], share)[0]
        masks = [mask.view_as(scores) for mask, scores in zip(masks.split([s.numel() for s in rows]), rows)]
    else:
        masks = [_largest(scores, share) for scores in rows]
    for (weight, _), mask in zip(found, masks):
        weight.mul_(mask.view_as(weight) if spec.scope == "matrix" else sparse.canonical(mask))
    return sparse, Sharing(pruned=True)


def _largest(scores: Tensor, share: float) -> Tensor:
    """1 at the largest entries of each row, as many as their share, and 0 elsewhere."""
    stay = torch.zeros_like(scores)
    return stay.scatter_(1, scores.topk(int(share * scores.shape[1]), dim=1).indices, 1.0)


def _scores(view: ModelView, layer: int, role: str, calibration: Calibration, spec: Prune) -> Tensor:
    """The scores of a matrix's entries, float32, in the shape that it is stored in."""
    weight = view.linears(layer)[role].weight
    if spec.score == "magnitude":
        return weight.abs()
    sizes = calibration.moments(layer)[SITE[role]].second.diagonal().clamp_min(0).sqrt().to(weight)
    return view.canonical(view.canonical(weight).abs() * sizes)
