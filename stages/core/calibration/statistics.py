"""What calibration text has shown about a model, as the surgery needs it: permutations and moments."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.calibration.moments import Moments, from_tensors
from stages.core.process.artifacts import read_arrays, read_tensors

TOKENS_AT_ONCE = 2048  # of the calibration text, in one forward pass


@dataclass
class Calibration:
    """Read when it is needed, a layer at a time.

    permutation(alignment, reference, first, other): lays the neurons of layer `other` upon those of `first` (int64,
    shape (d_ff,)), where the layers between the two are of the same group.
    moments(layer): moments of what the layer's FFN reads (`input`) and of its activations (`hidden`).
    text(): the calibration text itself, batches of token ids (int64, shape (rows, length)).
    watch(items): the items, while it shows how far whoever works through them has come.
    walk: a `depth.Walk`, the text on its way through the model last repaired: the next window need not start anew.
    """

    permutation: Callable[[str, str, int, int], Tensor]
    moments: Callable[[int], Mapping[str, Moments]]
    text: Callable[[], Iterable[Tensor]]
    watch: Callable[[Iterable], Iterable] = iter
    walk: Any = field(default=None, init=False)


def read(permutations: Path, moments: Path, device: Any = "cpu") -> Calibration:
    """The calibration that stages `align` and `extract` wrote, its tensors on `device`."""
    found = read_arrays(permutations)

    def permutation_of(alignment: str, reference: str, first: int, other: int) -> Tensor:
        return torch.from_numpy(found[key(alignment, reference, first, other)]).to(device)

    def text() -> list[Tensor]:
        rows = read_tensors(moments / "text.safetensors")["rows"].to(device)
        return list(rows.split(max(1, TOKENS_AT_ONCE // rows.shape[1])))

    return Calibration(permutation_of, lambda layer: read_moments(moments, layer, device), text)


def read_moments(folder: Path, layer: int, device: Any = "cpu") -> dict[str, Moments]:
    """One layer's moments as stage `extract` wrote them, its tensors on `device`."""
    tensors = read_tensors(folder / f"layer_{layer:02d}.safetensors")
    return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


def key(alignment: str, reference: str, first: int, other: int) -> str:
    """What a file of permutations calls the one that lays layer `other` upon `first`."""
    return f"{alignment}.{reference}.{first}-{other}"
