"""What else could make a model as small: fewer layers, thinner FFN matrices, or sparse ones."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture import ffn, shape, targets
from stages.core.architecture.depth import influence, keep_layers
from stages.core.architecture.families import family_of
from stages.core.calibration.moments import SITE
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.variants import Drop, LowRank, Prune
from stages.core.shrinking import budgets
from stages.core.shrinking.lowrank import DELTAS


def drop(model: Any, calibration: Calibration, spec: Drop) -> tuple[Any, Sharing]:
    """The model without the layers of least influence: `spec.layers` of them, or the fewest that reach the target.

    Men et al. 2024 (arXiv:2403.03853).
    """
    family = family_of(model.config.model_type)
    order = influence(model, family, calibration.watch(calibration.text())).argsort(stable=True).tolist()
    fewest = spec.layers
    if fewest is None:
        fewest = targets.layers(shape.of_model(model), spec.target_parameters)
    return keep_layers(model, family, sorted(order[fewest:])), Sharing()


@torch.no_grad()
def low_rank(
    model: Any, calibration: Calibration, spec: LowRank, ranks: Mapping[str, Mapping[str, int]] | None = None
) -> tuple[Any, Sharing]:
    """Every FFN matrix W becomes a product A B on its own, fitted plainly or by the second moments of its input.

    `ranks` (layer, as JSON's string -> role -> rank) are those that `spec` asks for unless given. With
    `bias_correction`, and where the model has biases, b takes up the mean error (W - A B) E[x].
    """
    family, thin = family_of(model.config.model_type), copy.deepcopy(model)
    sharing = Sharing(ranks=ranks or _ranks(model, calibration, spec), factored=True)
    install(thin, family, sharing)
    for layer in calibration.watch(range(len(family.blocks(model)))):
        known, moments = _double(model, layer), calibration.moments(layer)
        for role, linear in family.linears(thin, layer).items():
            weight, seen = known[f"w_{role}"], moments[SITE[role]]
            corrected = spec.bias_correction and linear.bias is not None
            if sharing.rank_of(layer, role):
                read = seen.centred() if corrected else seen
                product = DELTAS[spec.fit](weight, sharing.rank_of(layer, role), read)
                for factor, value in zip((linear.A, linear.B), product):
                    factor.copy_(value)
            if corrected:
                linear.bias.copy_(known[f"b_{role}"] + (weight - linear.delta().double()) @ seen.mean)
    return thin, sharing


def _ranks(model: Any, calibration: Calibration, spec: LowRank) -> dict[str, dict[str, int]]:
    """The ranks that fill the budget: each matrix the same share of its parameters, or what its gains earn it."""
    measures = shape.of_model(model)
    shapes, layers, room = measures.matrices, range(measures.layers), targets.room(measures, spec.target_parameters)
    if spec.ranks == "equal":
        share = room / (len(layers) * measures.ffn_matrices)
        alike = {role: int(share * d_out * d_in / (d_out + d_in)) for role, (d_out, d_in) in shapes.items()}
        return {str(layer): dict(alike) for layer in layers}
    gains = {}
    for layer in layers:
        known, moments = _double(model, layer), calibration.moments(layer)
        for role in shapes:
            weight = known[f"w_{role}"]
            if spec.fit == "weighted":
                seen = moments[SITE[role]]
                weight = weight @ (seen.centred() if spec.bias_correction and f"b_{role}" in known else seen).root
            gains[layer, role] = budgets.gains(weight, weight)
    return budgets.water_fill(gains, shapes, room)


def _double(model: Any, layer: int) -> dict[str, Tensor]:
    """A layer's canonical FFN in float64."""
    read = ffn.read(model, family_of(model.config.model_type), layer)
    return {name: tensor.double() for name, tensor in read.items()}


@torch.no_grad()
def prune(model: Any, spec: Prune) -> tuple[Any, Sharing]:
    """The largest entries of the FFN matrices stay, the others are zero: magnitude pruning, unstructured.

    As many stay as the target leaves, of every matrix the same share or wherever they are the largest of all
    (Han et al. 2015, arXiv:1506.02626).
    """
    family, sparse = family_of(model.config.model_type), copy.deepcopy(model)
    weights = [
        linear.weight for i in range(len(family.blocks(sparse))) for linear in family.linears(sparse, i).values()
    ]
    room = targets.room(shape.of_model(model), spec.target_parameters)
    share = room / sum(weight.numel() for weight in weights)
    for together in [weights] if spec.scope == "all" else [[weight] for weight in weights]:
        sizes = torch.cat([weight.abs().flatten() for weight in together])
        stay = torch.zeros_like(sizes)
        stay[sizes.topk(int(share * len(sizes))).indices] = 1
        for weight, mask in zip(together, stay.split([weight.numel() for weight in together])):
            weight.mul_(mask.view_as(weight))
    return sparse, Sharing(pruned=True)
