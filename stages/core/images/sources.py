"""Where images come from. A source gives encoded images with labels; pixel values are exact."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stages.core.images import dataset, digits
from stages.core.settings.images import Digits, ImageDataset, Patterns

Source = Patterns | Digits | ImageDataset

Row = tuple[bytes, int]  # an image as its file has it (PNG, JPEG, ...), and its label from 0
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3}


def rows(source: Source, split: str) -> Iterable[Row]:
    """The rows of one split (`train`, `validation` or `test`), always in one order, each image as the source has it.

    Raises UserError where they cannot be had.
    """
    return READERS[source.kind](source, split)


def names(source: Source) -> list[str]:
    """The name of each label, in the order of their numbers; empty where the source names none."""
    return dataset.names(source) if isinstance(source, ImageDataset) else []


def _patterns(source: Patterns, split: str) -> Iterator[Row]:
    """Random patterns, one a label, under noise; labels come by turns."""
    side = source.side
    shape = source.labels, side, side, 3
    patterns = np.random.default_rng(source.seed).integers(0, 256, shape)
    random = np.random.default_rng([source.seed, SPLIT_SEEDS[split]])
    for number in range(getattr(source, split)):
        label = number % source.labels
        noise = random.integers(-96, 97, shape[1:])
        yield encoded(np.clip(patterns[label] + noise, 0, 255).astype(np.uint8)), label


def _digits(source: Digits, split: str) -> Iterator[Row]:
    """Handwritten digits as images of one channel; their pixels go from 0 to 16."""
    pixels, labels = digits.read(Path(source.file))
    for number in digits.chosen(labels, split):
        yield encoded(pixels[number]), int(labels[number])


def _dataset(source: ImageDataset, split: str) -> list[Row]:
    """The rows of a data set in random order.

    Folders of images give one class after the other, and every budget of images is a split's first ones.
    """
    rows = dataset.read(source, split)
    return [rows[number] for number in np.random.default_rng(SPLIT_SEEDS[split]).permutation(len(rows))]


READERS = {"patterns": _patterns, "digits": _digits, "dataset": _dataset}


def encoded(pixels: np.ndarray) -> bytes:
    """Pixels, uint8, (height, width) or (height, width, 3), as the bytes of a PNG, which loses nothing."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
