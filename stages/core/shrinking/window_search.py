"""Which windows to share, by what it costs the model on held-out text."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stages.core.architecture import shape, targets, windows
from stages.core.architecture.families import family_of
from stages.core.architecture.windows import SPARE, Window
from stages.core.calibration.statistics import Calibration
from stages.core.settings.variants import Best, Budget
from stages.core.shrinking import budgets, ranks
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.operations import Ranks, operate


@dataclass(frozen=True)
class Layout:
    """Disjoint windows, the perplexity with them, and the ranks of single matrices where a budget chose them."""

    windows: tuple[Window, ...]
    perplexity: float
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Found:
    """The best layout, everything that was scored, and the original's perplexity on the same tokens."""

    chosen: Layout
    scored: list[Layout]
    original: float


def search(
    model: Any,
    calibration: Calibration,
    operation: Any,
    wanted: Best | Budget,
    score: Callable[[Any], float],
    watch: Callable[[Iterable], Iterable] = iter,
) -> Found:
    """Score every single window with the very start that `operation` gives it, then lay windows as `wanted`.

    `score` maps a model to its perplexity. What a window costs is log(perplexity / original's). Layouts of several
    windows are shortlisted by the sum of their windows' costs, then scored themselves; the best has the lowest cost
    for each layer saved or, within a budget, the lowest perplexity.
    """
    depth, original = len(family_of(model.config.model_type).blocks(model)), score(model)

    def measure(layout: tuple[Window, ...], chosen: Ranks | None = None) -> Layout:
        groups = [windows.layers(window) for window in layout]
        return Layout(layout, score(operate(model, groups, calibration, operation, chosen)[0]), chosen)

    singles = windows.contiguous(depth, wanted.sizes, wanted.exclude_layers)
    scored = [measure((window,)) for window in watch(singles)]
    costs = {layout.windows[0]: math.log(layout.perplexity / original) for layout in scored}
    ways = windows.layouts(costs, depth, wanted.shortlist)
    if isinstance(wanted, Budget):
        plans = list(_plans(model, ways, calibration, operation, wanted))
        tried = [measure(layout, chosen) for layout, chosen in watch(plans)]
        return Found(min(tried, key=lambda layout: layout.perplexity), scored + tried, original)
    price = lambda cost, layout: cost / windows.saved(layout)  # noqa: E731
    ways = sorted((way for way in ways if len(way[1]) == wanted.count), key=lambda way: price(*way))
    if wanted.count == 1:
        tried = [layout for layout in scored if layout.windows == ways[0][1]]
    else:
        tried = [measure(layout) for _, layout in watch(ways[: wanted.shortlist])]
        scored = scored + tried
    chosen = min(tried, key=lambda layout: price(math.log(layout.perplexity / original), layout.windows))
    return Found(chosen, scored, original)


def _plans(model: Any, ways: list, calibration: Calibration, operation: Any, wanted: Budget):
    """Layouts that leave room in the budget, each with the ranks that fill it."""
    measures = shape.of_model(model)
    # What one saved layer no longer stores.
    matrices = targets.saving(measures, operation.biases)
    total, target = measures.parameters, targets.target(measures, wanted.target_parameters)
    needed = math.ceil((total - target) / matrices)
    fitting = [way for way in ways if needed <= windows.saved(way[1]) < needed + SPARE]
    known: dict[Window, dict[Matrix, Any]] = {}
    for extra in range(SPARE):
        alike = [layout for _, layout in fitting if windows.saved(layout) == needed + extra]
        for layout in alike[: wanted.shortlist]:
            for window in layout:
                if window not in known:
                    known[window] = ranks.gains(model, windows.layers(window), calibration, operation)
            room = target - (total - windows.saved(layout) * matrices)
            every = {matrix: values for window in layout for matrix, values in known[window].items()}
            yield layout, budgets.water_fill(every, measures.matrices, room)
