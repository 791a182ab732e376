"""The pictures of the report."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.transforms import ScaledTranslation

from stages.core.reporting.drawing import COLOURS, INK, MARKERS, legend, logarithmic, new_figure, plt, side_by_side
from stages.core.reporting.study import Study, alone, by_size, by_speed, correlation_rows, noise

NEAR = (1.1, 1.25, 1.5, 2)  # times the control's perplexity: how far a closer look goes
FAR = 3  # times the third quartile: a perplexity above it would flatten all others
FORMS = {
    form: {"facecolor": colour, "edgecolor": INK, "linewidth": 0.4, "alpha": 0.6}
    for form, colour in zip(
        ("dense", "low_rank", "sparse", "gone", "shared"), ("#8b949e", *COLOURS[1:3], COLOURS[0], COLOURS[3])
    )
}


def drawings(study: Study) -> dict[str, Callable[[], Any]]:
    """Name -> what draws it as a matplotlib figure."""
    return {
        "perplexity_by_size": lambda: perplexity_by_size(study),
        "perplexity_by_speed": lambda: perplexity_by_speed(study),
        **({"accuracy_by_size": lambda: accuracy_by_size(study)} if study.has("perplexity", "accuracy_after") else {}),
        "window_search": lambda: window_search(study),
        **({"forms": lambda: forms(study)} if mixed(study) else {}),
        "correlations": lambda: correlations(study),
        "training": lambda: training(study),
    }


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each variant: a colour for names that differ in their last number only."""
    kinds: dict[str, int] = {}
    found, members = {}, {}
    for name in names:
        kind = re.sub(r"_\d+$", "", name)
        number = kinds.setdefault(kind, len(kinds))
        members[kind] = members.get(kind, -1) + 1
        colour = INK if name == "original" else COLOURS[(number - 1) % len(COLOURS)]
        found[name] = {"color": colour, "marker": MARKERS[(number + members[kind]) % len(MARKERS)]}
    return found


def perplexity_by_size(study: Study) -> Any:
    """Every variant at its stored parameters, before (hollow) and after (filled); beside it those near the control.

    There markers that would cover each other stand side by side.
    """
    figure, (whole, near) = new_figure(2)
    points = {name: (study.sizes[name]["parameters"] / 1e6, study.perplexity[name]["after"]) for name in study.variants}
    for name, style in styles(study.variants).items():
        (millions, after), before = points[name], study.perplexity[name]["before"]
        whole.plot([millions] * 2, [before, after], color=style["color"], alpha=0.3, linewidth=1)
        whole.plot(millions, before, **style, fillstyle="none", linestyle="")
        whole.plot(millions, after, **style, label=name, linestyle="")
    whole.set(title="Before (hollow) and after fine-tuning (filled)", ylabel="test perplexity")
    _pareto(study, whole, near, points, by_size(study), apart=True)
    whole.set_xlabel("stored parameters, millions")
    near.set_xlabel("stored parameters, millions (equal ones stand side by side)")
    return legend(figure, whole)


def perplexity_by_speed(study: Study) -> Any:
    """Every variant after fine-tuning at its speed-up over the original; beside it those near the control.

    A band shows how far the original beside itself is off.
    """
    figure, (whole, near) = new_figure(2)
    points = {name: (study.latency[name]["speedup"], study.perplexity[name]["after"]) for name in study.variants}
    for name, style in styles(study.variants).items():
        whole.plot(*points[name], **style, label=name, linestyle="")
    whole.set(title="After fine-tuning", ylabel="test perplexity")
    _pareto(study, whole, near, points, by_speed(study))
    for axes in (whole, near):
        axes.axvspan(1 - noise(study), 1 + noise(study), color=INK, alpha=0.08, linewidth=0)
        axes.set_xlabel("speed-up over the original (grey: as the original)")
    return legend(figure, whole)


def _pareto(study: Study, whole: Any, near: Any, points: Mapping, line: list[str], apart: bool = False) -> None:
    """The Pareto line in two panels, and in the second the points near the control.

    Near is the least of NEAR times the control's perplexity that holds half of the variants.
    """
    values = [value for _, value in points.values()]
    counts = {bound: sum(value <= bound * study.control for value in values) for bound in NEAR}
    bound = next((bound for bound, count in counts.items() if 2 * count >= len(values)), NEAR[-1])
    close = {name: point for name, point in points.items() if point[1] <= bound * study.control}
    dashed = {"color": INK, "alpha": 0.5, "linewidth": 1, "linestyle": "--", "zorder": 0}
    whole.plot(*zip(*(points[name] for name in line)), **dashed, label="Pareto line")
    near.plot(*zip(*(close[name] for name in line if name in close)), **dashed)
    near.axhline(study.control, color=INK, alpha=0.5, linewidth=1, linestyle=":")
    near.set(title=f"After fine-tuning, up to {bound:g} times the control (95% bars)")
    for axes in (whole, near):
        axes.margins(0.08)
    logarithmic(whole.yaxis)
    near.plot(*zip(*close.values()), linestyle="")
    near.set_ylim(near.get_ylim())  # by the points alone: an interval may leave the panel
    moved = side_by_side(near, close) if apart else dict.fromkeys(close, 0.0)
    for name, style in styles(study.variants).items():
        if name in close:
            place = near.transData + ScaledTranslation(moved[name] / 72, 0, near.figure.dpi_scale_trans)
            (x, y), bounds = close[name], study.bounds(name) or ()
            bar = [end * study.control for end in bounds]
            near.plot([x] * len(bar), bar, color=style["color"], alpha=0.4, linewidth=1, transform=place)
            near.plot(x, y, **style, linestyle="", transform=place)


def accuracy_by_size(study: Study) -> Any:
    """Every variant's accuracy after fine-tuning at its stored parameters, with its interval, beside the control's."""
    figure, axes = new_figure(1)
    for name, style in styles(study.variants).items():
        millions, found = study.sizes[name]["parameters"] / 1e6, study.perplexity[name]
        interval = [found["accuracy_low_after"], found["accuracy_high_after"]]
        axes.plot([millions] * 2, interval, color=style["color"], alpha=0.3, linewidth=1)
        axes.plot(millions, found["accuracy_after"], **style, label=name, linestyle="")
    control = study.perplexity["original"]["accuracy_after"]
    axes.axhline(control, color=INK, alpha=0.5, linewidth=1, linestyle=":")
    axes.set(xlabel="stored parameters, millions", ylabel="test accuracy after fine-tuning")
    axes.margins(0.08)
    return legend(figure, axes)


def window_search(study: Study) -> Any:
    """Perplexity of every window that was scored, against its first layer, beside the original's.

    A line ends where a start was not scored. What lies far above the rest is an arrow at the upper edge with its value.
    """
    figure, axes = new_figure(1)
    lines, drawn, beyond = ("-", "--", "-.", ":"), styles(study.variants), []
    single = {name: alone(found) for name, found in study.windows.items()}
    every = [candidate["perplexity"] for found in single.values() for candidate in found]
    most = FAR * np.quantile(every, 0.75) if every else np.inf
    for name, found in single.items():
        for number, size in enumerate(sorted({_size(candidate) for candidate in found})):
            scored = {c["windows"][0][0]: c["perplexity"] for c in found if size == _size(c)}
            starts = range(min(scored), max(scored) + 1)
            line = {"linestyle": lines[number % len(lines)], "linewidth": 1.2, "label": f"{name}, {size} layers"}
            values = [scored.get(start, np.nan) for start in starts]
            axes.plot(starts, [value if value <= most else np.nan for value in values], **drawn[name], **line)
            beyond += [(start, value, drawn[name]["color"]) for start, value in scored.items() if value > most]
    originals = {found["original_perplexity"] for found in study.windows.values() if found["candidates"]}
    for value in sorted(originals):
        axes.axhline(value, color=INK, alpha=0.5, linewidth=1, linestyle=":", label="original")
    axes.set(xlabel="first layer of the window (layers count from 0)", ylabel="validation perplexity")
    axes.xaxis.get_major_locator().set_params(integer=True)
    logarithmic(axes.yaxis)
    for start, value, colour in beyond:
        edge = {"xy": (start, 1), "xycoords": ("data", "axes fraction"), "color": colour, "fontsize": 8}
        axes.annotate(
            f"{value:,.4g}" if value < 1e4 else f"{value:.0e}",
            **edge,
            xytext=(0, -30),
            textcoords="offset points",
            ha="center",
            arrowprops={"arrowstyle": "->", "color": colour},
        )
    return legend(figure, axes)


def forms(study: Study) -> Any:
    """Layers by roles for every mixture, coloured by form, with the percentage of each matrix that is stored."""
    names = mixed(study)
    figure, grid = new_figure(1, len(names))
    for axes, name in zip(np.ravel(grid), names):
        found = study.windows[name]
        roles, depth = list(found["shares"]["0"]), len(found["shares"])
        grouped = {layer for group in found["groups"] for layer in group}
        for layer, row in ((layer, row) for layer in range(depth) for row in range(len(roles))):
            share = found["shares"][str(layer)][roles[row]]
            alone = found["forms"].get(str(layer), {}).get(roles[row], {"form": "dense"})["form"]
            form = "shared" if layer in grouped else alone if share else "gone"
            axes.add_patch(plt.Rectangle((layer, row), 1, 1, **FORMS[form], label=form.replace("_", " ")))
            if depth <= 40:
                axes.text(layer + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=6)
        every = range(0, depth, 1 if depth <= 16 else 5)
        axes.set(title=f"{name}: stored, % of each matrix", xlabel="layer", xlim=(0, depth), ylim=(0, len(roles)))
        axes.set_xticks([layer + 0.5 for layer in every], [str(layer) for layer in every])
        axes.set_yticks([row + 0.5 for row in range(len(roles))], roles)
        axes.grid(False)
    figure.set_size_inches(9.2, 1.2 + 1.6 * len(names))
    return legend(figure, np.ravel(grid)[0])


def mixed(study: Study) -> list[str]:
    """The variants whose matrices have forms of their own."""
    return [name for name, found in study.windows.items() if "shares" in found]


def correlations(study: Study) -> Any:
    """Mean correlation of every two layers' neurons, a row a site: matched, less what chance gives; as numbered."""
    depth, sites = study.provenance["layers"], list(study.alignment["sites"])
    panels = {(site, key): np.full((depth, depth), np.nan) for site in sites for key in ("above_chance", "as_numbered")}
    for row in correlation_rows(study):
        for key in ("above_chance", "as_numbered"):
            both = [row["first"], row["second"]]
            panels[row["site"], key][both, both[::-1]] = row[key]
    low, high = min(0.0, *map(np.nanmin, panels.values())), max(map(np.nanmax, panels.values()))
    figure, grid = new_figure(2, len(sites))
    for axes, ((site, key), values) in zip(np.ravel(grid), panels.items()):
        drawn = axes.pcolormesh(values, cmap="viridis", vmin=low, vmax=high)
        words = {"above_chance": "matched, above chance", "as_numbered": "as numbered"}[key]
        axes.set(title=f"{site.replace('_', ' ')}, {words}", xlabel="layer", ylabel="layer", aspect="equal")
        every = range(0, depth, 1 if depth <= 16 else 5)
        axes.set_xticks([layer + 0.5 for layer in every], [str(layer) for layer in every])
        axes.set_yticks([layer + 0.5 for layer in every], [str(layer) for layer in every])
        axes.invert_yaxis()
        axes.grid(False)
        # On more layers the numbers would be too small to read.
        for (row, column), value in np.ndenumerate(values) if depth <= 16 else ():
            if np.isfinite(value):
                tone = "#ffffff" if value < (low + high) / 2 else "#000000"
                shown = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".")  # no -.00
                axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", fontsize=6, color=tone)
    figure.colorbar(drawn, ax=list(np.ravel(grid)), shrink=0.75, label="mean correlation").outline.set_visible(False)
    return figure


def training(study: Study) -> Any:
    """Training loss, and perplexity at every look at the validation split, of every variant's recovery.

    A loss is the mean of the last fortieth of the steps, for the batches of one sequence that a small machine takes.
    What it adds up differs between variants: those without a teacher have the text's part alone.
    """
    figure, (losses, validation) = new_figure(2)
    for name, style in styles(study.variants).items():
        rows = study.training[name]
        few = {"markersize": 3, "markevery": max(1, len(rows) // 6)}
        loss = pd.Series([row["loss"] for row in rows]).rolling(max(1, len(rows) // 40), min_periods=1).mean()
        losses.plot([row["tokens"] / 1e3 for row in rows], loss, **style, **few, linewidth=1.1)
        seen = study.recovery[name]["looks"]
        points = [(at[study.unit] / 1e3, at["perplexity"]) for at in seen]
        validation.plot(*zip(*points), **style, linewidth=1.1, markersize=4, label=name)
    losses.set(title="Training loss, to compare within a variant only")
    validation.set(title="Validation perplexity, to compare across variants")
    for axes in (losses, validation):
        axes.set_xlabel(f"{study.unit}, thousands")
        logarithmic(axes.yaxis)
    return legend(figure, validation)


def _size(candidate: Mapping[str, Any]) -> int:
    """The number of layers of a candidate's first window."""
    first, last = candidate["windows"][0]
    return last - first + 1
