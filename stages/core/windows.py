"""Groups of consecutive layers: which ones a variant treats as one."""

from stages.core.errors import UserError


def blocks(depth: int, size: int) -> list[list[int]]:
    """Consecutive blocks of `size` from layer 0; the last is shorter where `size` does not divide `depth`.

    A last block of a single layer has nothing to share with and is left out.
    """
    _check(depth, size)
    groups = [list(range(start, min(start + size, depth))) for start in range(0, depth, size)]
    return [group for group in groups if len(group) > 1]


def contiguous(depth: int, size: int) -> list[list[int]]:
    """Every window of `size` neighbouring layers."""
    _check(depth, size)
    return [list(range(start, start + size)) for start in range(depth - size + 1)]


def _check(depth: int, size: int) -> None:
    if not 2 <= size <= depth:
        raise UserError(
            f"params.yaml: windows.size = {size}: this model has {depth} layers, so 2 to {depth} are allowed"
        )
