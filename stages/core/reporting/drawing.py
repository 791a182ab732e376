"""How pictures of the study are drawn: colours, axes and legends, and files whose bytes depend on the figures only."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402  the backend is chosen first: no screen is needed
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator  # noqa: E402

# Middle tones that stand out on white and on black; what is drawn in INK takes a page's own text colour.
INK = "#1b1f24"
COLOURS = ("#d1495b", "#3a86c8", "#2a9d6f", "#e08e2b", "#8e6bbf", "#2fa4b5", "#c45ba0", "#a07a4b", "#8a9a2b")
MARKERS = "osD^vPX*p<>"
APART = 8  # points between the middles of markers that stand side by side
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.markersize": 6,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
matplotlib.rcParams.update(STYLE)


def png(figure: Any, path: Path) -> None:
    """Write a figure on white."""
    figure.savefig(path, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def svg(figure: Any, name: str) -> str:
    """A figure as an element for an HTML page: transparent, its ink the page's text colour, its ids its own."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    plt.close(figure)
    text = file.getvalue()
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    return text.replace(INK, "currentColor")


def new_figure(columns: int, rows: int = 1) -> tuple[Any, Any]:
    """A figure of so many panels under a grid, and its axes."""
    size = (9.2 if columns > 1 else 6.4, 4.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    for one in np.ravel(axes):
        one.grid(True)
    return figure, axes


def logarithmic(axis: Any) -> None:
    """Make an axis of a plot logarithmic, with plain numbers on it, several of them whatever it spans."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
    elif high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def side_by_side(axes: Any, points: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """How far, in typographic points, each named point's marker moves along the lower axis to cover no other."""
    places = {name: axes.transData.transform(point) * 72 / axes.figure.dpi for name, point in points.items()}
    groups: list[list[str]] = []
    for name in sorted(points, key=points.get):
        near = [group for group in groups if any(np.abs(places[name] - places[other]).max() < APART for other in group)]
        groups = [group for group in groups if group not in near] + [[*sum(near, []), name]]
    return {
        name: APART * (number - (len(group) - 1) / 2)
        for group in groups
        for number, name in enumerate(sorted(group, key=lambda name: points[name][1]))
    }


def legend(figure: Any, axes: Any) -> Any:
    """What `axes` label, once each, beneath the whole figure."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    if handles:
        columns = 5 if len(figure.axes) > 1 else 4
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    return figure
