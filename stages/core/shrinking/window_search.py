"""The search for the windows of layers to share, by perplexity on held-out text."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from stages.core.architecture import targets, windows
from stages.core.architecture.depth import record_states, resume_at
from stages.core.architecture.view import ModelView
from stages.core.architecture.windows import SPARE, Window
from stages.core.calibration.statistics import Calibration
from stages.core.settings.surgeries import Share
from stages.core.settings.windows import Best, Budget
from stages.core.shrinking import budgets, ranks
from stages.core.shrinking.limits import STATES
from stages.core.shrinking.members import Ranks
from stages.core.shrinking.operations import operate

Way = tuple[float, tuple[Window, ...]]  # the summed costs of single windows, and the windows


@dataclass(frozen=True)
class Layout:
    """Disjoint windows, the perplexity of the model with them, and the ranks of single matrices under a budget."""

    windows: tuple[Window, ...]
    perplexity: float
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Found:
    """The best layout, every layout that was scored, and the original's perplexity on the same tokens."""

    chosen: Layout
    scored: list[Layout]
    original: float


def search(
    view: ModelView,
    calibration: Calibration,
    operation: Any,
    spec: Best | Budget,
    score: Callable[[ModelView], float],
    watch: Callable[[Iterable], Iterable] = iter,
    known: list[Layout] | None = None,
    gains: ranks.WindowGains | None = None,
) -> Found:
    """The best layout by `spec`, with every window made by the method `operation`, deltas as they are fitted at first.

    Refits of layers with deltas come when the layout is known: each reads all the calibration text, and takes ten times
    as long as the rest.
    `score` maps a model to its perplexity. The cost of a window is log(perplexity / original's). Every single window is
    scored; layouts of several windows are shortlisted by their summed costs, then scored as a whole. The best layout
    has the lowest cost per saved layer or, within a budget, the lowest perplexity.

    What comes before a window is the original: its forward passes are recorded once, within STATES bytes, and those of
    a changed model start from there. `score` must run a model on the same inputs in the same order every time.
    known: the single windows, where an earlier search has scored them. gains: those that an earlier search has found.
    """
    operation = _before_refits(operation)
    singles = windows.contiguous(view.depth, spec.sizes, spec.exclude_layers, view.borders)
    with record_states(view, sorted({first for first, _ in singles} - {0}), STATES) as states:
        original = score(view)

    def measure(layout: tuple[Window, ...], chosen: Ranks | None = None) -> Layout:
        changed, _ = operate(view, [windows.layers(window) for window in layout], calibration, operation, chosen)
        start = max((layer for layer in states.before if layer <= layout[0][0]), default=None)
        with nullcontext() if start is None else resume_at(changed, start, states):
            return Layout(layout, score(changed), chosen)

    def cost_per_layer(layout: Layout) -> float:
        return math.log(layout.perplexity / original) / windows.saved(layout.windows)

    scored = [measure((window,)) for window in watch(singles)] if known is None else known
    costs = {layout.windows[0]: math.log(layout.perplexity / original) for layout in scored}
    ways = windows.layouts(costs, view.depth, spec.shortlist)
    if isinstance(spec, Budget):
        weight = partial(targets.saved, view.shape, operation.biases)
        ways = windows.layouts(costs, view.depth, spec.shortlist, weight)
        gains = ranks.WindowGains(view, calibration, operation) if gains is None else gains
        plans = list(_plans(view, ways, gains, operation, spec))
        tried = [measure(layout, chosen) for layout, chosen in watch(plans)]
        return Found(min(tried, key=_perplexity), scored + tried, original)
    ways = sorted((way for way in ways if len(way[1]) == spec.count), key=_cost_per_layer)
    if spec.count == 1:
        tried = [layout for layout in scored if layout.windows == ways[0][1]]
    else:
        tried = [measure(layout) for _, layout in watch(ways[: spec.shortlist])]
        scored = scored + tried
    return Found(min(tried, key=cost_per_layer), scored, original)


def _before_refits(operation: Any) -> Any:
    """The method without what refits layers with deltas."""
    if isinstance(operation, Share) and operation.delta != "none":
        return operation.model_copy(update={"repair": "none", "refit_others": False})
    return operation


def _perplexity(layout: Layout) -> float:
    return layout.perplexity


def _cost_per_layer(way: Way) -> float:
    """The summed cost of a way to lay windows, per saved layer."""
    cost, layout = way
    return cost / windows.saved(layout)


def _plans(
    view: ModelView, ways: list[Way], gains: ranks.WindowGains, operation: Share, spec: Budget
) -> Iterator[tuple[tuple[Window, ...], Ranks]]:
    """Layouts that leave room in the budget, each with the ranks that fill it."""
    shape = view.shape
    unit = targets.saving(shape, operation.biases)
    total, target = shape.parameters, targets.target(shape, spec.target_parameters)
    most = (math.ceil((total - target) / unit) + SPARE) * unit
    by_amount: dict[int, list[tuple[Window, ...]]] = {}
    for _, layout in ways:
        amount = sum(targets.saved(shape, operation.biases, window) for window in layout)
        if total - target <= amount < most:
            by_amount.setdefault(amount, []).append(layout)
    for amount, alike in sorted(by_amount.items()):
        for layout in alike[: spec.shortlist]:
            room = target - (total - amount)
            every = {matrix: values for window in layout for matrix, values in gains[window].items()}
            yield layout, budgets.water_fill(every, {key: shape.matrices_of(key[0])[key[1]] for key in every}, room)
