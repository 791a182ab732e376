"""How a budget of parameters is allotted to the matrices of a model's FFNs."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Matrix = tuple[int, str]  # a layer and a role
NOTHING = 1e-100  # as a sum of squares: below all that float32 can make, above what a ridge leaves of inputs of zero


def gains(weight: Tensor, residual: Tensor) -> Tensor:
    """The relative error that each further rank of a fit takes away: sigma_i^2 / |W|_F^2, float64, falling.

    sigma_i are the singular values of `residual`, which low rank is to fit; W is `weight`, (d_out, d_in) both. For
    errors on inputs, both come multiplied by a root of the inputs' second moments. All are 0 where W or its inputs are.
    """
    gram = residual @ residual.T if residual.shape[0] <= residual.shape[1] else residual.T @ residual
    taken, whole = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0), weight.square().sum()
    return taken / whole if whole > NOTHING else torch.zeros_like(taken)


def water_fill(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[Matrix, tuple[int, int]], budget: int
) -> dict[str, dict[str, int]]:
    """Layer, as a string -> role -> rank. All ranks together store at most `budget` parameters.

    The next rank goes to the matrix where it takes away most error per stored parameter (cf. reverse water-filling,
    Cover & Thomas, Elements of Information Theory, 10.3.3). shapes: (d_out, d_in) of each matrix; a rank stores
    d_out + d_in. No matrix gets a rank whose two factors store more than the matrix itself.
    """
    found = _filled(gains, shapes, dict.fromkeys(gains, 0), budget)
    ranks: dict[str, dict[str, int]] = {str(layer): {} for layer, _ in gains}
    for (layer, role), rank in found.items():
        ranks[str(layer)][role] = rank
    return ranks


def factor_or_keep(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[Matrix, tuple[int, int]], budget: int
) -> dict[Matrix, int]:
    """Matrix -> rank, for those that become products; the others stay dense. All together store at most `budget`.

    Two factors that store as much as the matrix are worse than the matrix. So the choice is over the lower convex hull
    of each matrix's points (stored parameters, error left): its ranks, and the matrix itself, which leaves no error.
    The steepest steps of all hulls are taken while they fit, and what is left buys further ranks. Where ranks alone
    leave less error, the answer is those. gains: as for `water_fill`; shapes: (d_out, d_in) of each matrix.
    """
    steps = []
    for matrix, values in gains.items():
        edge = hull(_points(values, *shapes[matrix]))
        steps += [
            ((error - next_error) / (next_cost - cost), matrix, next_cost - cost, next_cost)
            for (cost, error), (next_cost, next_error) in zip(edge, edge[1:])
            if error > next_error
        ]
    stored, room = dict.fromkeys(gains, 0), budget
    for _, matrix, cost, reached in sorted(steps, reverse=True):
        # A step is taken only from the point before it.
        if cost <= room and stored[matrix] == reached - cost:
            stored[matrix], room = reached, room - cost
    ranks = {matrix: size // sum(shapes[matrix]) for matrix, size in stored.items() if size < _product(shapes[matrix])}
    mixed = _filled(gains, shapes, ranks, room)
    plain = _filled(gains, shapes, dict.fromkeys(gains, 0), budget)
    return mixed if _error(gains, mixed) < _error(gains, plain) else plain


def _filled(
    gains: Mapping[Matrix, Tensor], shapes: Mapping[Matrix, tuple[int, int]], ranks: Mapping[Matrix, int], room: int
) -> dict[Matrix, int]:
    """`ranks`, and further ranks where they take away most error per stored parameter, while there is room."""
    found = dict(ranks)
    steps = sorted(
        (
            (gain / sum(shapes[matrix]), matrix)
            for matrix, rank in ranks.items()
            for gain in gains[matrix][rank:].tolist()
        ),
        reverse=True,
    )
    for _, matrix in steps:
        size = sum(shapes[matrix])
        if size <= room and (found[matrix] + 1) * size <= _product(shapes[matrix]):
            found[matrix] += 1
            room -= size
    return found


def _points(gains: Tensor, d_out: int, d_in: int) -> list[tuple[int, float]]:
    """(stored parameters, error left) of a matrix, from rank 0 to the dense matrix."""
    whole = gains.sum().item()
    most = min(len(gains), (d_out * d_in - 1) // (d_out + d_in))
    left = (whole - gains.cumsum(0)).clamp_min(0).tolist()
    return [(0, whole)] + [((rank + 1) * (d_out + d_in), left[rank]) for rank in range(most)] + [(d_out * d_in, 0.0)]


def hull(points: Iterable[tuple]) -> list[tuple]:
    """The lower convex hull of points that begin with (stored parameters, harm), sorted by what they store.

    Of points that store as much, the first is taken.
    """
    found: list[tuple] = []
    for point in points:
        if found and point[0] == found[-1][0]:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-2], point):
            found.pop()
        found.append(point)
    return found


def _slope(one: tuple, other: tuple) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _error(gains: Mapping[Matrix, Tensor], ranks: Mapping[Matrix, int]) -> float:
    """The sum of the relative errors that ranks leave; a matrix that has none is dense."""
    return sum(gains[matrix][rank:].sum().item() for matrix, rank in ranks.items())
