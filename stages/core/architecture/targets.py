"""The meaning of `target_parameters` for a model: numbers of parameters and of layers."""

from collections.abc import Sequence

from stages.core.architecture.shape import Shape
from stages.core.architecture.windows import Window
from stages.core.settings.windows import Like


def target(shape: Shape, spec: int | float | Like) -> int:
    """The stored parameters by `target_parameters`: a number, a share of the model's, or those of a model with windows.

    For `Like`, `count` windows share one FFN each, with deltas of the given rank and own biases. In a model with stages
    they lie in the deepest one.
    """
    if isinstance(spec, Like):
        deltas = spec.rank * sum(map(sum, shape.matrices.values()))
        return shape.parameters - spec.count * ((spec.size - 1) * shape.ffn_matrices - spec.size * deltas)
    return round(spec * shape.parameters) if isinstance(spec, float) else spec


def room(shape: Shape, spec: int | float | Like) -> int:
    """The parameters that `target_parameters` leaves for the matrices of all FFNs if nothing else changes."""
    return target(shape, spec) - (shape.parameters - shape.all_ffn_matrices)


def mask_size(entries: int) -> int:
    """What the mask of a pruned matrix stores: one bit an entry, in parameters of 32 bits."""
    return -(-entries // 32)


def masks(shape: Shape) -> int:
    """What the masks of all FFN matrices store."""
    return sum(
        stage.depth * sum(mask_size(d_out * d_in) for d_out, d_in in shape.matrices_of(stage.first).values())
        for stage in shape.stages
    )


def dropped(shape: Shape, order: Sequence[int], spec: int | float | Like | None, count: int | None) -> list[int]:
    """The layers to drop, the first of `order`: `count`, or the fewest for at most `target_parameters`.

    A stage keeps its last layer.
    """
    gone: list[int] = []
    left = {stage.first: stage.depth for stage in shape.stages}
    over = shape.parameters - target(shape, spec) if count is None else 0
    for layer in order:
        if (len(gone) >= count) if count is not None else (over <= 0):
            return gone
        stage = shape.stage_of(layer)
        if left[stage.first] > 1:
            left[stage.first] -= 1
            over -= stage.block
            gone.append(layer)
    return gone


def layers(shape: Shape, spec: int | float | Like) -> int:
    """How many layers are dropped at most so that the model stores at most `target_parameters`."""
    smallest_first = sorted(range(shape.layers), key=lambda layer: shape.stage_of(layer).block)
    return len(dropped(shape, smallest_first, spec, None))


def saving(shape: Shape, biases: str, layer: int | None = None) -> int:
    """The parameters that a shared model saves for each layer of a group but one, before deltas are added.

    layer: one of the group; None: in the stage where that is most.
    """
    if layer is None:
        return max(saving(shape, biases, stage.first) for stage in shape.stages)
    stored = sum(d_out for d_out, _ in shape.matrices_of(layer).values()) if "ffn" in shape.biases else 0
    return shape.ffn_matrices_of(layer) + (stored if biases == "shared" else 0)


def saved(shape: Shape, biases: str, window: Window) -> int:
    """The parameters that a window saves, before deltas are added."""
    return (window[1] - window[0]) * saving(shape, biases, window[0])
