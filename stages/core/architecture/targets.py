"""The meaning of `target_parameters` for a model: numbers of parameters and of layers."""

from stages.core.architecture.shape import Shape
from stages.core.settings.variants import Like


def target(shape: Shape, spec: int | float | Like) -> int:
    """The stored parameters by `target_parameters`: a number, a share of the model's, or those of a model with windows.

    For `Like`, `count` windows share one FFN each, with deltas of the given rank and own biases.
    """
    if isinstance(spec, Like):
        deltas = spec.rank * sum(map(sum, shape.matrices.values()))
        return shape.parameters - spec.count * ((spec.size - 1) * shape.ffn_matrices - spec.size * deltas)
    return round(spec * shape.parameters) if isinstance(spec, float) else spec


def room(shape: Shape, spec: int | float | Like) -> int:
    """The parameters that `target_parameters` leaves for the matrices of all FFNs if nothing else changes."""
    return target(shape, spec) - (shape.parameters - shape.layers * shape.ffn_matrices)


def layers(shape: Shape, spec: int | float | Like) -> int:
    """The smallest number of layers to drop so that the model stores at most `target_parameters`."""
    return max(0, -((target(shape, spec) - shape.parameters) // shape.block))


def saving(shape: Shape, biases: str) -> int:
    """The parameters that a shared model saves for each layer of a group but one, before deltas are added."""
    return shape.ffn_matrices + (shape.ffn_biases if biases == "shared" else 0)
