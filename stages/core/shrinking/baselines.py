"""Baselines of the same size: fewer layers, low-rank FFN matrices, or sparse ones."""

from collections.abc import Mapping

import torch

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
    """Every FFN matrix W as a product A B, fitted to W itself or weighted by the second moments of its inputs.

    ranks: layer, as JSON's string -> role -> rank; by default those that fill the budget of `spec`. With
    `bias_correction`, and if the model has biases, b absorbs the mean error (W - A B) E[x].
    """
    factored = view.copy()
    sharing = Sharing(ranks=ranks or _ranks(view, calibration, spec), factored=True)
    install(factored, sharing)
    for layer in calibration.watch(range(view.depth)):
        original, moments = view.read_double(layer), calibration.moments(layer)
        for role, linear in factored.linears(layer).items():
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
    """The ranks that fill the budget: the same share of every matrix's parameters, or by `budgets.water_fill`."""
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
    return budgets.water_fill(gains, shapes, room)


@torch.no_grad()
def prune(view: ModelView, spec: Prune) -> tuple[ModelView, Sharing]:
    """Magnitude pruning, unstructured: the largest entries of the FFN matrices stay, the others are zero.

    As many stay as the target allows: the same share of every matrix, or the largest of all matrices together (Han et
    al. 2015, arXiv:1506.02626).
    """
    sparse = view.copy()
    weights = [linear.weight for layer in range(sparse.depth) for linear in sparse.linears(layer).values()]
    room = targets.room(view.shape, spec.target_parameters)
    share = room / sum(weight.numel() for weight in weights)
    for together in [weights] if spec.scope == "all" else [[weight] for weight in weights]:
        sizes = torch.cat([weight.abs().flatten() for weight in together])
        stay = torch.zeros_like(sizes)
        stay[sizes.topk(int(share * len(sizes))).indices] = 1
        for weight, mask in zip(together, stay.split([weight.numel() for weight in together])):
            weight.mul_(mask.view_as(weight))
    return sparse, Sharing(pruned=True)
