"""Images on which variants disagree, with every variant's answer beside them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from stages.core.process.artifacts import parquet_reader
from stages.core.reporting.pictures import INK
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
    """A column for each image, a line for each variant, its answer in the cell; wrong answers in red."""
    from PIL import Image

    found, rows = after(study.samples), list(study.images)
    truth = {row["row"]: row["label"] for row in study.samples["original"]}
    named = lambda label: study.label_names[label][:9] if label < len(study.label_names) else str(label)  # noqa: E731
    lines = len(study.variants)
    figure = plt.figure(figsize=(9.6, 1.2 + 0.22 * lines))
    grid = figure.add_gridspec(2, len(rows), height_ratios=[3, lines], left=0.15, right=0.99, top=0.92, bottom=0.02)
    for place, row in enumerate(rows):
        axes = figure.add_subplot(grid[0, place])
        with Image.open(io.BytesIO(study.images[row])) as image:
            axes.imshow(image, cmap="gray" if image.mode == "L" else None)
        axes.set_title(named(truth[row]), fontsize=9, loc="center")
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    axes.set(xlim=(0, len(rows)), ylim=(lines, 0), yticks=[line + 0.5 for line in range(lines)], xticks=[])
    axes.set_yticklabels(study.variants)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for line, name in enumerate(study.variants):
        for place, row in enumerate(rows):
            answer = found[name][row]
            wrong = answer != truth[row]
            axes.text(
                place + 0.5, line + 0.5, named(answer), ha="center", va="center", fontsize=9,
                color=WRONG if wrong else INK, fontweight="bold" if wrong else "normal",
            )  # fmt: skip
    return figure
