"""Plots of the study, as PNG files whose bytes depend on the figures only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend is chosen first: no screen is needed

COLOURS = {"original": "black", "softshare": "tab:red", "merged": "tab:blue", "compressed": "tab:green"}


def size_against_perplexity(figures: Mapping[str, Any], path: Path) -> None:
    """Every variant at its stored parameters, perplexity after fine-tuning (filled) and before (hollow)."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, row in figures.items():
        colour = COLOURS.get(name.rsplit("_", 1)[0], "tab:purple")
        millions, (before, after) = row["parameters"] / 1e6, row["perplexity"].values()
        axes.plot([millions, millions], [before, after], color=colour, alpha=0.3)
        axes.plot(millions, before, "o", color=colour, fillstyle="none")
        axes.plot(millions, after, "o", color=colour)
        axes.annotate(name, (millions, after), xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="stored parameters (millions, every tensor once)",
        ylabel="test perplexity (log scale)",
        title="Perplexity before (hollow) and after fine-tuning (filled)",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def window_search(windows: Mapping[str, Any], path: Path) -> None:
    """Perplexity of every window that was scored, against its first layer, beside the original's."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, found in windows.items():
        if found["candidates"]:
            firsts = [candidate["first"] for candidate in found["candidates"]]
            (line,) = axes.plot(firsts, [c["perplexity"] for c in found["candidates"]], "o-", label=name)
            axes.axhline(found["original_perplexity"], color=line.get_color(), linestyle=":", label="original")
    axes.set(
        xlabel="first layer of the window",
        ylabel="validation perplexity (log scale)",
        title="Every contiguous window, before any training",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
