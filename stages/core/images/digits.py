"""The handwritten digits that scikit-learn ships, from a parquet table of this repository.

1,797 images of 8 x 8 pixels from 0 to 16, after E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits"
(UCI machine learning repository, 1998, CC BY 4.0): the test set there, in its order. Neighbours in it seem to be by the
same writer, so splits are blocks: as in scikit-learn's own example, the last 540 are the test split; the 257 before
them are for validation.
"""

from pathlib import Path

import numpy as np

from stages.core.process.artifacts import numbers, parquet_reader

SIDE, VALIDATION, TEST = 8, 257, 540
FULL = 16  # of a pixel: black


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 from 0 to 16, (images, 8, 8), and labels, int8, (images,), in the official order."""
    with parquet_reader(path) as file:
        table = file.read(columns=["pixels", "label"])
        pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8)
        return pixels.reshape(-1, SIDE, SIDE), numbers(table["label"])


def chosen(labels: np.ndarray, split: str) -> np.ndarray:
    """The numbers of the images of a split (`train`, `validation` or `test`), int64, in order."""
    end, last = len(labels), len(labels) - TEST
    parts = {"train": (0, last - VALIDATION), "validation": (last - VALIDATION, last), "test": (last, end)}
    return np.arange(*parts[split])
