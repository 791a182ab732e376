"""Plots of the study, as PNG files whose bytes depend on the figures only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend is chosen first: no screen is needed

COLOURS = {"original": "black", "softshare": "tab:red", "merged": "tab:blue", "compressed": "tab:green"}
MARKERS = "osD^vPX*"


def size_against_perplexity(figures: Mapping[str, Any], path: Path) -> None:
    """Every variant at its stored parameters: perplexity after fine-tuning (filled) and before (hollow)."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    drawn: dict[str, int] = {}
    for name, row in figures.items():
        kind = name.rsplit("_", 1)[0]
        colour, marker = COLOURS.get(kind, "tab:purple"), MARKERS[drawn.setdefault(kind, 0) % len(MARKERS)]
        drawn[kind] += 1
        millions, perplexity = row["parameters"] / 1e6, row["perplexity"]
        axes.plot([millions, millions], [perplexity["before"], perplexity["after"]], color=colour, alpha=0.25)
        axes.plot(millions, perplexity["before"], marker, color=colour, fillstyle="none")
        axes.plot(millions, perplexity["after"], marker, color=colour, label=name)
    axes.set(
        xlabel="stored parameters (millions, every tensor once)",
        ylabel="test perplexity (log scale)",
        title="Perplexity before (hollow) and after fine-tuning (filled)",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _save(figure, path)


def window_search(windows: Mapping[str, Any], path: Path) -> None:
    """Perplexity of every window that was scored, against its first layer, beside the original's."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, found in windows.items():
        single = [c for c in found["candidates"] if len(c["windows"]) == 1]
        for size in sorted({_size(c) for c in single}):
            points = [(c["windows"][0][0], c["perplexity"]) for c in single if size == _size(c)]
            axes.plot(*zip(*points), "o-", label=f"{name}, {size} layers")
        if single:
            axes.axhline(found["original_perplexity"], color="black", linestyle=":", label=f"{name}: original")
    axes.set(
        xlabel="first layer of the window",
        ylabel="validation perplexity (log scale)",
        title="Every contiguous window, before any training",
        yscale="log",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    _save(figure, path)


def _size(candidate: Mapping[str, Any]) -> int:
    """The number of layers of a candidate's first window."""
    first, last = candidate["windows"][0]
    return last - first + 1


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
