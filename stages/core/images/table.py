"""A split of labelled images as one parquet table, and its rows as a model reads them.

The table holds the images as encoded files, so that no pixel value changes, and the config of the model's image
processor as metadata: whoever reads it gets the pixels as the model wants them.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.process.artifacts import parquet_reader, parquet_writer
from stages.core.process.errors import UserError

PROCESSOR, NAMES = b"image_processor", b"label_names"  # the metadata: JSON
ROWS_PER_GROUP = 1024
LEAST = 4  # images that are worth a thread


@dataclass(frozen=True)
class Batch:
    """Images as the model reads them, float32, (n, channels, height, width), and their labels, int64, (n,)."""

    pixels: Tensor
    labels: Tensor

    def to(self, device: Any) -> "Batch":
        """The same batch on a device."""
        return Batch(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """Rows of a table. Numbers of rows give a `Batch`; a slice gives these rows, still encoded.

    files: the encoded images. labels: int64, (rows,). processor: the model's image processor. names: of the labels.
    """

    files: list[bytes]
    labels: Tensor
    processor: Any
    names: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, chosen: slice | Tensor) -> Any:
        if isinstance(chosen, slice):
            return Images(self.files[chosen], self.labels[chosen], self.processor, self.names)
        return Batch(self.pixels(chosen.tolist()), self.labels[chosen])

    def pixels(self, numbers: Iterable[int]) -> Tensor:
        """The images of these numbers as the model reads them. Raises UserError where a file is no image.

        As many threads as torch has decode them: one takes milliseconds an image, and a GPU would wait.
        """
        chosen = list(numbers)
        size = max(LEAST, -(-len(chosen) // torch.get_num_threads()))
        runs = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        if len(runs) == 1:
            return self._processed(chosen)
        with ThreadPoolExecutor(len(runs)) as threads:
            return torch.cat(list(threads.map(self._processed, runs)))

    def _processed(self, numbers: list[int]) -> Tensor:
        from PIL import Image, ImageOps

        mean = getattr(self.processor, "image_mean", None)
        mode = "L" if isinstance(mean, Sequence) and len(mean) == 1 else "RGB"
        decoded = []
        for number in numbers:
            try:
                with Image.open(io.BytesIO(self.files[number])) as image:
                    # A camera may store an image turned, and say so beside it.
                    decoded.append(ImageOps.exif_transpose(image).convert(mode))
            except OSError as error:
                raise UserError(f"image {number} cannot be read: {error}") from error
        return self.processor(decoded, return_tensors="pt")["pixel_values"].float()

    def batches(self, size: int) -> list["Images"]:
        """The rows in runs of `size`, still encoded; the last run may be shorter."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def whole(self) -> Batch:
        """All rows as one batch."""
        return Batch(self.pixels(range(len(self))), self.labels)

    def digest(self) -> str:
        """The sha256, in hexadecimal, of the encoded images in order."""
        found = hashlib.sha256()
        for file in self.files:
            found.update(file)
        return found.hexdigest()


def write(path: Path, rows: Iterable[tuple[bytes, int]], processor: dict[str, Any], names: list[str]) -> list[bytes]:
    """Write a parquet table, one row an image: `image` (its file's bytes) and `label` (int32); return their digests.

    processor: the config of the image processor. Raises UserError where there is no row or a label is below 0.
    """
    import pyarrow as pa

    known = {PROCESSOR: json.dumps(processor, sort_keys=True), NAMES: json.dumps(names)}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int32())], metadata=known)
    seen: list[bytes] = []
    with parquet_writer(path, schema) as writer:
        rest = iter(rows)
        while group := list(islice(rest, ROWS_PER_GROUP)):
            files, labels = zip(*group)
            if min(labels) < 0:
                raise UserError(f"prepare.source: a label of {path.stem} is {min(labels)}: labels are counted from 0")
            seen += [hashlib.sha256(file).digest() for file in files]
            columns = [pa.array(files, pa.binary()), pa.array(labels, pa.int32())]
            writer.write_batch(pa.record_batch(columns, schema=schema))
        if not seen:
            raise UserError(f"prepare.source: split {path.stem} has no image")
    return seen


def labels(path: Path) -> list[int]:
    """The labels of a table that `write` wrote."""
    with parquet_reader(path) as file:
        return file.read(["label"])["label"].to_pylist()


def refuse_other_labels(splits: Mapping[str, list[int]], names: Sequence[str]) -> None:
    """Raise UserError where most images of a split have labels that no image of split `train` has.

    So it is where rows in the order of their labels are cut; a few such images are no mistake where labels are many.
    names: of the labels, where they have any.
    """
    known = set(splits["train"])
    for split, found in splits.items():
        others = [label for label in found if label not in known]
        if 2 * len(others) > len(found):
            name = names[others[0]] if others[0] < len(names) else others[0]
            raise UserError(
                f"prepare.source: {len(others):,} of the {len(found):,} {split} images have labels that no train image "
                f"has, such as {name!r}: rows in the order of their labels were cut; mix them first, or give {split} a "
                "file or folder of its own"
            )


def shared(rows: list[bytes], others: list[bytes]) -> dict[str, int]:
    """How many rows there are, and how many of them are among `others`, by the digests of their images."""
    known = set(others)
    return {"rows": len(rows), "shared_rows": sum(row in known for row in rows)}


def read(path: Path, most: int | None = None) -> Images:
    """The first `most` rows of a table that `write` wrote (all of them where None)."""
    files: list[bytes] = []
    labels: list[int] = []
    with parquet_reader(path) as file:
        known = file.schema_arrow.metadata
        most = file.metadata.num_rows if most is None else most
        for group in file.iter_batches(ROWS_PER_GROUP):
            files += group["image"].to_pylist()
            labels += group["label"].to_pylist()
            if len(files) >= most:
                break
    found = torch.tensor(labels[:most], dtype=torch.int64)
    return Images(files[:most], found, processor(json.loads(known[PROCESSOR])), json.loads(known[NAMES]))


def processor(config: dict[str, Any]) -> Any:
    """The image processor of this config, by the name of its class."""
    import transformers

    return getattr(transformers, config["image_processor_type"]).from_dict(config)
