"""How a budget of parameters is allotted to the matrices of a model's FFNs."""

from collections.abc import Mapping

import torch
from torch import Tensor

Matrix = tuple[int, str]  # a layer and a role


def gains(weight: Tensor, residual: Tensor) -> Tensor:
    """The relative error that each further rank of a fit takes away: sigma_i^2 / |W|_F^2, float64, falling.

    sigma_i are the singular values of `residual`, which low rank is to fit; W is `weight`, (d_out, d_in) both. For
    errors on inputs, both come multiplied by a root of the inputs' second moments. All are 0 where W is.
    """
    gram = residual @ residual.T if residual.shape[0] <= residual.shape[1] else residual.T @ residual
    taken, whole = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0), weight.square().sum()
    return taken / whole if whole > 0 else torch.zeros_like(taken)


def water_fill(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """Layer, as a string -> role -> rank. All ranks together store at most `budget` parameters.

    The next rank goes to the matrix where it takes away most error per stored parameter (cf. reverse water-filling,
    Cover & Thomas, Elements of Information Theory, 10.3.3). shapes: role -> (d_out, d_in); a rank stores d_out + d_in.
    No matrix gets a rank whose two factors store more than the matrix itself.
    """
    steps = sorted(
        (
            (gain / sum(shapes[role]), layer, role)
            for (layer, role), values in gains.items()
            for gain in values.tolist()
        ),
        reverse=True,
    )
    ranks = {str(layer): dict.fromkeys(shapes, 0) for layer, _ in gains}
    for _, layer, role in steps:
        (d_out, d_in), rank = shapes[role], ranks[str(layer)][role]
        if d_out + d_in <= budget and (rank + 1) * (d_out + d_in) <= d_out * d_in:
            ranks[str(layer)][role] += 1
            budget -= d_out + d_in
    return ranks


def factor_or_keep(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """Layer, as a string -> role -> rank of the matrices that become products; those that stay dense are left out.

    Two factors that store as much as the matrix are worse than the matrix. So the choice is over the lower convex hull
    of each matrix's points (stored parameters, error left): its ranks, and the matrix itself, which leaves no error.
    The steepest steps of all hulls are taken while they fit, the rest of the budget goes to further ranks. Where that
    leaves more error than `water_fill`, whose arguments these are, the answer is that of `water_fill`.
    """
    steps = []
    for (layer, role), values in gains.items():
        hull = _hull(values, *shapes[role])
        steps += [
            ((error - next_error) / (next_cost - cost), layer, role, next_cost - cost, next_cost)
            for (cost, error), (next_cost, next_error) in zip(hull, hull[1:])
            if error > next_error
        ]
    stored, room = dict.fromkeys(gains, 0), budget
    for _, layer, role, cost, reached in sorted(steps, reverse=True):
        # A step may be taken only from the point before it.
        if cost <= room and stored[layer, role] == reached - cost:
            stored[layer, role], room = reached, room - cost
    ranks, plain = _filled_up(gains, shapes, stored, room), water_fill(gains, shapes, budget)
    return ranks if _error(gains, ranks) < _error(gains, plain) else plain


def _hull(gains: Tensor, d_out: int, d_in: int) -> list[tuple[int, float]]:
    """The lower convex hull of (stored parameters, error left) of a matrix, from rank 0 to the dense matrix."""
    left = gains.sum().item() - gains.cumsum(0)
    ranks = range(1, (d_out * d_in - 1) // (d_out + d_in) + 1)
    points = [(0, gains.sum().item())]
    points += [(rank * (d_out + d_in), max(left[rank - 1].item(), 0.0)) for rank in ranks] + [(d_out * d_in, 0.0)]
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _filled_up(gains, shapes, stored: Mapping[Matrix, int], room: int) -> dict[str, dict[str, int]]:
    """The ranks for what each matrix stores, and further ranks where they help most while there is room."""
    ranks: dict[str, dict[str, int]] = {str(layer): {} for layer, _ in gains}
    for (layer, role), size in stored.items():
        d_out, d_in = shapes[role]
        if size < d_out * d_in:
            ranks[str(layer)][role] = size // (d_out + d_in)
    further = sorted(
        (
            (gain / sum(shapes[role]), layer, role)
            for (layer, role), values in gains.items()
            if role in ranks[str(layer)]
            for gain in values[ranks[str(layer)][role] :].tolist()
        ),
        reverse=True,
    )
    for _, layer, role in further:
        (d_out, d_in), rank = shapes[role], ranks[str(layer)][role]
        if d_out + d_in <= room and (rank + 1) * (d_out + d_in) < d_out * d_in:
            ranks[str(layer)][role] += 1
            room -= d_out + d_in
    return ranks


def _error(gains: Mapping[Matrix, Tensor], ranks: Mapping[str, Mapping[str, int]]) -> float:
    """The sum of the relative errors that ranks leave; a matrix that has none is dense."""
    return sum(
        values[ranks[str(layer)][role] :].sum().item()
        for (layer, role), values in gains.items()
        if role in ranks[str(layer)]
    )
