"""What `target_parameters` asks for, in numbers of parameters and of layers."""

from stages.core.architecture.shape import Shape
from stages.core.settings.variants import Like


def target(shape: Shape, wanted: int | float | Like) -> int:
    """The stored parameters that `target_parameters` asks for: a number, a share of the model's, or a window's."""
    if isinstance(wanted, Like):
        thin = wanted.rank * sum(map(sum, shape.matrices.values()))
        return shape.parameters - wanted.count * ((wanted.size - 1) * shape.ffn_matrices - wanted.size * thin)
    return round(wanted * shape.parameters) if isinstance(wanted, float) else wanted


def room(shape: Shape, wanted: int | float | Like) -> int:
    """What `target_parameters` leaves to the matrices of all FFNs, everything else being kept as it is."""
    return target(shape, wanted) - (shape.parameters - shape.layers * shape.ffn_matrices)


def layers(shape: Shape, wanted: int | float | Like) -> int:
    """The fewest layers without which the model stores no more than `target_parameters`."""
    return max(0, -((target(shape, wanted) - shape.parameters) // shape.block))


def saving(shape: Shape, biases: str) -> int:
    """What a shared model does not store for each layer but one of a group, deltas apart."""
    return shape.ffn_matrices + (shape.ffn_biases if biases == "shared" else 0)
