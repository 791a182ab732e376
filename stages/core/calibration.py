"""What calibration text has shown about a model, as the surgery needs it: permutations and moments."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.artifacts import read_arrays, read_tensors
from stages.core.moments import Moments, from_tensors

# What a linear map of each role reads: the FFN's input, or its hidden activations.
SITE = {"in": "input", "gate": "input", "out": "hidden"}
TOKENS_AT_ONCE = 2048  # of the calibration text, in one forward pass


@dataclass(frozen=True)
class Calibration:
    """Read when it is needed, a layer at a time.

    permutation(first, other): lays the neurons of layer `other` upon those of `first` (int64, shape (d_ff,)).
    moments(layer): moments of what the layer's FFN reads (`input`) and of its activations (`hidden`).
    text(): the calibration text itself, batches of token ids (int64, shape (rows, length)).
    """

    permutation: Callable[[int, int], Tensor]
    moments: Callable[[int], Mapping[str, Moments]]
    text: Callable[[], Iterable[Tensor]]


def read(permutations: Path, moments: Path, device: Any = "cpu") -> Calibration:
    """The calibration that stages `align` and `extract` wrote, its tensors on `device`."""
    found = read_arrays(permutations)

    def moments_of(layer: int) -> Mapping[str, Moments]:
        tensors = read_tensors(moments / f"layer_{layer:02d}.safetensors")
        return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})

    def text() -> list[Tensor]:
        rows = read_tensors(moments / "text.safetensors")["rows"].to(device)
        return list(rows.split(max(1, TOKENS_AT_ONCE // rows.shape[1])))

    return Calibration(lambda first, other: torch.from_numpy(found[f"{first}-{other}"]).to(device), moments_of, text)
