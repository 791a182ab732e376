"""Images on which variants disagree, with every variant's answer beside them."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from stages.core.process.artifacts import parquet_reader
from stages.core.reporting.drawing import INK
from stages.core.reporting.study import Study

MOST = 12  # images that are shown
WRONG = "#d1495b"
Samples = Mapping[str, Sequence[Mapping[str, Any]]]


def after(samples: Samples) -> dict[str, dict[int, int]]:
    """Variant -> row of an image -> the answer of the recovered variant. Samples that are no images give nothing."""
    return {
        name: {row["row"]: row["predicted"] for row in rows if row["stage"] == "after" and "predicted" in row}
        for name, rows in samples.items()
    }


def shown(samples: Samples, most: int = MOST) -> list[int]:
    """At most `most` rows of images on which not all recovered variants agree.

    They are spread evenly from those on which one variant differs from `original` to those on which most do.
    """
    found = after(samples)
    differing = {
        row: sum(answers[row] != answer for answers in found.values()) for row, answer in found["original"].items()
    }
    rows = sorted((row for row, count in differing.items() if count), key=lambda row: (differing[row], row))
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def read(path: Path, rows: Sequence[int]) -> tuple[dict[int, bytes], list[str]]:
    """Row -> encoded image, for these rows of a split's table, and the names of the labels, if they have any."""
    if not rows:
        return {}, []
    with parquet_reader(path) as file:
        images = file.read(columns=["image"])["image"]
        names = json.loads(file.schema_arrow.metadata[b"label_names"])
        return {row: images[row].as_py() for row in rows}, names


def figure(study: Study) -> Any:
    """A column for each image, a line for each variant: a dot where it is right, else its answer in red."""
    from PIL import Image

    found, rows = after(study.samples), list(study.images)
    truth = {row["row"]: row["label"] for row in study.samples["original"]}
    lines, room, head = len(study.variants), 0.85 / MOST, 1.2  # room: of one image; head: inches for images and labels
    height = head + 0.22 * lines
    figure = plt.figure(figsize=(9.6, height))
    for place, row in enumerate(rows):
        inches = 0.9 * room * 9.6
        axes = figure.add_axes((0.14 + place * room + 0.05 * room, 1 - 1.1 / height, 0.9 * room, inches / height))
        with Image.open(io.BytesIO(study.images[row])) as image:
            axes.imshow(image, cmap="gray" if image.mode == "L" else None)
        axes.set_title(_named(study, truth[row]), fontsize=8, loc="center")
        axes.axis("off")
    axes = figure.add_axes((0.14, 0, len(rows) * room, 1 - head / height))
    axes.set(xlim=(0, len(rows)), ylim=(lines, 0), yticks=[line + 0.5 for line in range(lines)], xticks=[])
    axes.set_yticklabels(study.variants)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for line, name in enumerate(study.variants):
        if line % 2 == 0:
            axes.axhspan(line, line + 1, color=INK, alpha=0.05, linewidth=0)
        for place, row in enumerate(rows):
            answer = found[name][row]
            wrong = answer != truth[row]
            axes.text(
                place + 0.5, line + 0.5, _named(study, answer, lines=1) if wrong else "·", ha="center", va="center",
                fontsize=8, color=WRONG if wrong else INK,
            )  # fmt: skip
    return figure


def _named(study: Study, label: int, lines: int = 2) -> str:
    """The name of a label as it fits over an image, or its number; what is cut ends in dots."""
    name = study.label_names[label].partition(",")[0] if label < len(study.label_names) else str(label)
    if lines == 1:
        return _cut(name)
    return "\n".join(textwrap.wrap(" ".join(map(_cut, name.split())), 10, max_lines=lines, placeholder="…"))


def _cut(name: str) -> str:
    return name if len(name) <= 10 else name[:9].rstrip() + "…"
