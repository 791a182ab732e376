"""What surgery knows of the calibration rows, text or images: permutations, moments and the text itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.calibration.moments import Moments, from_tensors
from stages.core.process.artifacts import read_arrays, read_tensors

KEPT = 4  # times a layer's moments: themselves, less their mean, and a root of each
TOKENS_PER_BATCH = 2048  # of the calibration text


@dataclass
class Calibration:
    """Statistics of one model, read from disk when they are needed, one layer at a time.

    permutation(alignment, reference, first, other): aligns the neurons of layer `other` with those of layer `first`;
    int64, (d_ff,), signed (see `ffn.permute`) where the family is gated and it aligns by cost. The layers between the
    two belong to the same group.
    moments(layer): the moments of the FFN's input (`input`) and of its hidden activations (`hidden`).
    text(): the calibration text, or images, in batches as `ModelView.run` takes them.
    watch(items): the items, with a progress bar.
    walk: the `depth.Walk` of the last repair. The next window of a search continues it where it can.
    """

    permutation: Callable[[str, str, int, int], Tensor]
    moments: Callable[[int], Mapping[str, Moments]]
    text: Callable[[], Iterable[Tensor]]
    watch: Callable[[Iterable], Iterable] = iter
    walk: Any = field(default=None, init=False)


def read(permutations: Path, moments: Path, device: Any = "cpu", keep: float = 0) -> Calibration:
    """The calibration that stages `align` and `extract` wrote, with its tensors on `device`.

    keep: bytes for the moments of the layers that were asked for last, and what fits compute of them.
    """
    found = read_arrays(permutations)
    size = (moments / "layer_00.safetensors").stat().st_size
    moments_of = lru_cache(int(keep // (KEPT * size)))(partial(read_moments, moments, device=device))

    def permutation_of(alignment: str, reference: str, first: int, other: int) -> Tensor:
        return torch.from_numpy(found[key(alignment, reference, first, other)]).to(device)

    def text() -> list[Tensor]:
        stored = read_tensors(moments / "text.safetensors")
        rows, tokens = stored["rows"].to(device), int(stored.get("tokens_per_row", stored["rows"].shape[1]))
        return list(rows.split(max(1, TOKENS_PER_BATCH // tokens)))

    return Calibration(permutation_of, moments_of, text)


def read_moments(folder: Path, layer: int, device: Any = "cpu") -> dict[str, Moments]:
    """One layer's moments as stage `extract` wrote them, with its tensors on `device`."""
    tensors = read_tensors(folder / f"layer_{layer:02d}.safetensors")
    return from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


def key(alignment: str, reference: str, first: int, other: int) -> str:
    """The name, in the file of permutations, of the one that aligns layer `other` with `first`."""
    return f"{alignment}.{reference}.{first}-{other}"
