"""Baselines of the same size: fewer layers, low-rank FFN matrices, or sparse ones."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from stages.core.architecture import targets, windows
from stages.core.architecture.depth import keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing, install
from stages.core.settings.surgeries import Drop, LowRank, Prune
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.layer_search import least_influence
from stages.core.shrinking.lowrank import DELTAS, shared_basis, summed, write
from stages.core.shrinking.making import correct
from stages.core.shrinking.options import matrices, read


def drop(
    view: ModelView, calibration: Calibration, spec: Drop, gone: Collection[int] | None = None
) -> tuple[ModelView, Sharing]:
    """The model without the layers `gone`, by default those of least block influence: by number, or for the target.

    Men et al. 2024, ShortGPT (arXiv:2403.03853).
    """
    if gone is None:
        order = least_influence(view, calibration)
        gone = targets.dropped(view.shape, order, spec.target_parameters, spec.layers)
    return keep_layers(view, [layer for layer in range(view.depth) if layer not in gone]), Sharing()


@torch.no_grad()
def low_rank(
    view: ModelView, calibration: Calibration, spec: LowRank, ranks: Mapping[str, Mapping[str, int]] | None = None
) -> tuple[ModelView, Sharing]:
    """FFN matrices W as products A B, fitted to W itself or weighted by the second moments of its inputs.

    ranks: layer, as JSON's string -> role -> rank, without the matrices that stay dense; by default what fills the
    budget of `spec`: with ranks `filled` a matrix stays dense where that leaves less error for as many parameters. With
    `bias_correction`, and if the model has biases, b absorbs the mean error (W - A B) E[x]. With `basis` above 1, so
    many layers in a row hold the same B for each role but `out` (see lowrank.shared_basis).
    """
    factored = view.copy()
    shared = [list(group) for group in _groups(view, spec.basis) if len(group) > 1]
    sharing = Sharing(ranks=ranks or ranks_within(view, calibration, spec), factored=True, bases=shared)
    install(factored, sharing)
    for group, role in calibration.watch(_matrices(view, spec)):
        rank = sharing.ranks[str(group[0])].get(role)
        if rank is None:
            continue
        weights, inputs = _read(view, calibration, spec, group, role)
        linears = [factored.linears(layer)[role] for layer in group]
        if rank and len(group) == 1:
            products = [DELTAS[spec.fit](weights[0], rank, inputs[0])]
        elif rank:
            each, basis = shared_basis(weights, rank, inputs)
            products = [(a, basis) for a in each]
        else:
            products = []
        for linear, product in zip(linears, products):
            write(linear, product)
        if spec.bias_correction:
            for layer, weight, linear in zip(group, weights, linears):
                correct(linear, weight - linear.delta().double(), view, calibration, layer, role)
    return factored, sharing


def _groups(view: ModelView, size: int) -> list[range]:
    stages = windows.stages(view.depth, view.borders)
    return [stage[first : first + size] for stage in stages for first in range(0, len(stage), size)]


def _matrices(view: ModelView, spec: LowRank) -> list[tuple[range, str]]:
    """Layers and a role of what is fitted together: the matrices of a basis, or one matrix."""
    return [
        (group, role)
        for of_basis in _groups(view, spec.basis)
        for role in view.roles
        for group in ([of_basis] if role != "out" else _groups_of(of_basis))
    ]


def _groups_of(layers: range) -> list[range]:
    return [range(layer, layer + 1) for layer in layers]


def _read(
    view: ModelView, calibration: Calibration, spec: LowRank, group: range, role: str
) -> tuple[list[Tensor], list[Moments]]:
    """The matrices of a role, float64, and the moments of their inputs as the fit takes them."""
    found = [read(view, calibration, layer, role, spec.bias_correction) for layer in group]
    return [weight for weight, _ in found], [moments for _, moments in found]


def ranks_within(view: ModelView, calibration: Calibration, spec: LowRank) -> dict[str, dict[str, int]]:
    """The ranks that fill the budget: the same share of every matrix, or by `budgets.factor_or_keep`."""
    shape, together = view.shape, _matrices(view, spec)
    shapes = {
        (group[0], role): (len(group) * d_out, d_in)
        for group, role in together
        for d_out, d_in in [shape.matrices_of(group[0])[role]]
    }
    room = targets.room(shape, spec.target_parameters)
    if spec.ranks == "equal":
        share = room / shape.all_ffn_matrices
        found = {matrix: int(share * d_out * d_in / (d_out + d_in)) for matrix, (d_out, d_in) in shapes.items()}
    else:
        gains = {}
        for group, role in together:
            weights, inputs = _read(view, calibration, spec, group, role)
            stacked = torch.cat(weights)
            if spec.fit == "weighted":
                stacked = stacked @ (inputs[0] if len(group) == 1 else summed(inputs)).root
            gains[group[0], role] = len(group) * budgets.gains(stacked, stacked)
        found = budgets.factor_or_keep(gains, shapes, room)
    ranks: dict[str, dict[str, int]] = {str(layer): {} for layer in range(view.depth)}
    for group, role in together:
        for layer in group:
            if (group[0], role) in found:
                ranks[str(layer)][role] = found[group[0], role]
    return ranks


@torch.no_grad()
def prune(view: ModelView, calibration: Calibration, spec: Prune) -> tuple[ModelView, Sharing]:
    """The model with its pruned matrices as masks and values."""
    return masked(view, pruned(view, calibration, spec))


@torch.no_grad()
def pruned(view: ModelView, calibration: Calibration, spec: Prune) -> dict[Matrix, Tensor]:
    """Pruning, unstructured: the entries of the FFN matrices with the largest scores stay, the others are zero.

    As many stay as the target allows beside a mask of one bit an entry: the same share of every row or matrix, or the
    largest of all together; a matrix that would keep nearly all of its entries then stays whole, without a mask. The
    score is |W_ij| (Han et al. 2015, arXiv:1506.02626), or |W_ij| E[x_j^2]^(1/2), the size of what the entry adds to
    output i (Sun et al. 2023, Wanda, arXiv:2306.11695, which compares the entries of a row).
    """
    every = matrices(view)
    scores = [_scores(view, layer, role, calibration, spec) for layer, role in every]
    room = targets.room(view.shape, spec.target_parameters)
    if spec.scope == "all":
        stays = _largest_of_all(scores, room)
    else:
        share = (room - targets.masks(view.shape)) / view.shape.all_ffn_matrices
        stays = [_largest(each if spec.scope == "row" else each.flatten()[None], share) for each in scores]
    return {
        matrix: view.read(matrix[0])[f"w_{matrix[1]}"] * stay.view_as(each)
        for matrix, stay, each in zip(every, stays, scores)
    }


def masked(view: ModelView, sparse: Mapping[Matrix, Tensor]) -> tuple[ModelView, Sharing]:
    """The model with some FFN matrices as a mask and values: (layer, role) -> (d_out, d_in), with zeros.

    A matrix with so few zeros that this would not make it smaller stays as it is.
    """
    changed, kept = view.copy(), entries_kept(sparse)
    install(changed, Sharing(kept=kept))
    for layer, roles in kept.items():
        for role in roles:
            changed.linears(int(layer))[role].store(sparse[int(layer), role])
    return changed, Sharing(kept=kept)


def entries_kept(sparse: Mapping[Matrix, Tensor]) -> dict[str, dict[str, int]]:
    """Layer, as a string -> role -> entries that are not zero, of the matrices that a mask makes smaller."""
    kept: dict[str, dict[str, int]] = {}
    for (layer, role), matrix in sparse.items():
        entries = (matrix != 0).sum().item()
        if entries + targets.mask_size(matrix.numel()) < matrix.numel():
            kept.setdefault(str(layer), {})[role] = entries
    return kept


def _largest_of_all(scores: list[Tensor], room: int) -> list[Tensor]:
    """1 at the largest entries of all matrices, which together with their masks take `room`; a whole one has no mask.

    Which are whole is found by turns: where one is, the others have the room that its mask would take.
    """
    sizes = [each.numel() for each in scores]
    whole: set[int] = set()
    while True:
        rest = [number for number in range(len(scores)) if number not in whole]
        left = room - sum(sizes[number] for number in whole) - sum(targets.mask_size(sizes[number]) for number in rest)
        entries = sum(sizes[number] for number in rest)
        stay = _largest(torch.cat([scores[number].flatten() for number in rest])[None], left / entries)[0]
        parts = dict(zip(rest, stay.split([sizes[number] for number in rest])))
        more = {n for n, part in parts.items() if part.sum() + targets.mask_size(sizes[n]) >= sizes[n]}
        if not more:
            return [parts.get(number, torch.ones_like(scores[number])) for number in range(len(scores))]
        whole |= more


def _largest(scores: Tensor, share: float) -> Tensor:
    """1 at the largest entries of each row, as many as their share, and 0 elsewhere."""
    stay = torch.zeros_like(scores)
    return stay.scatter_(1, scores.topk(max(0, int(share * scores.shape[1])), dim=1).indices, 1.0)


def _scores(view: ModelView, layer: int, role: str, calibration: Calibration, spec: Prune) -> Tensor:
    """The scores of a matrix's entries, float32, (d_out, d_in)."""
    sizes = view.read(layer)[f"w_{role}"].abs()
    if spec.score == "magnitude":
        return sizes
    return sizes * calibration.moments(layer)[SITE[role]].second.diagonal().clamp_min(0).sqrt().to(sizes)
