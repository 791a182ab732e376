"""Labelled images of any data set that `datasets` can load: of a hub, folders of images, parquet files.

Images are taken as their files have them, so that no pixel value changes.
"""

import io
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError
from stages.core.settings.images import ImageDataset
from stages.core.text.sources import place, taken


def read(source: ImageDataset, split: str) -> list[tuple[bytes, int]]:
    """The encoded images of one split with their labels, in order.

    Raises UserError, with split, row and column, at the first row without an image that can be decoded or without a
    label from 0.
    """

    def rows(table: Any) -> list[tuple[bytes, int]]:
        from datasets import Image

        table = table.select_columns([source.image, source.label]).cast_column(source.image, Image(decode=False))
        return [
            (_file(found[source.image], where := place(row, source, split, "prepare"), source.image),
             _label(found[source.label], where, source.label))
            for row, found in enumerate(table)
        ]  # fmt: skip

    found = taken(source, split, "prepare", [source.image, source.label], rows, whole=True)
    if not found:
        raise UserError(f"split {getattr(source, split)!r} of prepare.source has no image")
    return found


def names(source: ImageDataset) -> list[str]:
    """The names of the classes in the order of their labels; empty where the data set names none."""
    return taken(
        source, "train", "prepare", [source.label],
        lambda table: list(getattr(table.features[source.label], "names", None) or []),
        whole=True,
    )  # fmt: skip


def _file(image: dict[str, Any] | None, where: str, column: str) -> bytes:
    """The bytes of an image file that can be decoded."""
    from PIL import Image, ImageOps

    if image is None:
        raise UserError(f"{where} needs an image in {column!r}, not null")
    try:
        file = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        with Image.open(io.BytesIO(file)) as opened:
            opened.load()
            mode = ImageOps.exif_transpose(opened).mode
    except Exception as error:  # a damaged file makes its decoder raise nearly anything
        named = f" ({image['path']})" if image.get("path") else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} has no image that can be read in {column!r}{named}: {reason}") from error
    if mode == "F" or mode.startswith("I"):
        raise UserError(f"{where} has an image of mode {mode} in {column!r}: 8 bits a channel are needed")
    return file


def _label(label: Any, where: str, column: str) -> int:
    if type(label) is not int:
        found = "null" if label is None else type(label).__name__
        raise UserError(f"{where} needs a whole number in {column!r}, not {found}")
    if label < 0:
        raise UserError(
            f"{where} has {label} in {column!r}; labels are counted from 0. A test split without labels has -1: "
            "take rows of another split"
        )
    return label
