"""The picture of `make curve`: a named line a method, test perplexity above the original's against what is stored."""

from pathlib import Path

from stages.core.shrinking import curve

LEAST = 1e-4  # of the excess over the original that the picture shows: what is below it is as good
LEAST_WIDTH = 0.02  # of the shares that it shows
# Colours of the report's palette: as there where both have a method, and one for methods of the same name.
COLOURED = {
    "softshare": 0, "svd_weighted_equal": 1, "basis_2": 2, "mix_low_rank": 3, "dropped": 4, "dropped_searched": 4,
    "svd": 5, "svd_weighted": 6, "pruned": 7, "pruned_input": 7, "mix": 8, "mix_ordinary": 8,
}  # fmt: skip


def draw(rows: list[dict], path: Path) -> None:
    """Test perplexity above the original's (log scale) against the share stored, a named line a method."""
    from stages.core.reporting.drawing import COLOURS, INK, MARKERS, plt

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in (row for row in rows if row["method"] in curve.METHODS):
        lines.setdefault(row["method"], []).append((row["share"], max(row["excess"], LEAST)))
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    ends = {}
    for number, (name, points) in enumerate(lines.items()):
        dashes = {curve.SPARSE: "--", curve.FEWER: ":"}.get(curve.METHODS[name].speed, "-")
        style = {"color": COLOURS[COLOURED[name]], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(*zip(*sorted(points)), dashes, **style)
        ends[name] = (*min(points), style["color"])
    axes.set(
        title="Before recovery. Solid: ordinary matrices; dotted: fewer layers; dashed: needs sparse storage",
        xlabel="stored, share of the original",
        ylabel=f"test perplexity above the original's, share of it (at least {LEAST:g})",
        yscale="log",
    )
    axes.grid(which="major")
    shares = [share for points in lines.values() for share, _ in points]
    left, width = min(shares), max(max(shares) - min(shares), LEAST_WIDTH)
    height = axes.get_ylim()[1] / axes.get_ylim()[0]
    for name, y in _apart({name: value for name, (_, value, _) in ends.items()}, height ** (1 / 28)).items():
        share, value, colour = ends[name]
        link = {"arrowstyle": "-", "color": INK, "alpha": 0.3, "linestyle": (0, (1, 3)), "shrinkA": 0, "shrinkB": 3}
        place = {"xytext": (left - 0.027 * width, y), "ha": "right", "va": "center", "arrowprops": link}
        axes.annotate(name, (share, value), color=colour, **place)
    axes.set_xlim(left - 0.31 * width, left + 1.05 * width)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def _apart(heights: dict[str, float], least: float) -> dict[str, float]:
    """Heights of labels on a logarithmic axis in the same order, moved up so that neighbours differ by a factor."""
    found: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        found[name] = max(height, least * max(found.values(), default=0.0))
    return found
