"""What may become of whole layers in a mixture: windows that share one FFN, and layers that are gone.

The deltas of a window are options of its matrices, with a relative error each as any other form has. So one price
spends a budget over them and over the matrices that stay alone; the bases are stored whatever the price.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor

from stages.core.architecture import rules, targets, windows
from stages.core.architecture.depth import keep_layers
from stages.core.architecture.view import ModelView
from stages.core.architecture.windows import Window
from stages.core.calibration.statistics import Calibration
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Best, Budget, Forms
from stages.core.settings.windows import Layers as Leaving
from stages.core.shrinking import layer_search, ranks, window_search
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.making import SHARED, Layers
from stages.core.shrinking.options import Option, stored_by
from stages.core.shrinking.probes import Judge
from stages.core.shrinking.window_search import Layout


@dataclass(frozen=True)
class Surveyed:
    """What an arrangement of layers needs to know whatever the budget.

    windows: every single window and the perplexity of the model in which it alone shares. orders: in which layers go,
    by influence and by perplexity (see `layer_search`). fewer: for each order the divergence of the model without the
    first layer that may go, the first two, and so on. gains: those of the deltas of each window (see `ranks.gains`).
    """

    windows: list[Layout]
    orders: list[list[int]]
    fewer: list[list[float]]
    gains: dict[Window, dict[Matrix, Tensor]]


@dataclass(frozen=True)
class Arrangement:
    """Groups of layers that share one FFN, and layers that are gone.

    stored: the bases, less what the layers that are gone saved beside their FFN matrices. harm: the divergence of the
    model without the layers that are gone. deltas: the ranks of every matrix of a group as options. scored: whether
    the groups are those that sharing alone has chosen by whole models, as far as no layer of theirs is gone.
    """

    groups: list[list[int]]
    gone: list[int]
    stored: int
    harm: float
    deltas: dict[Matrix, list[Option]]
    scored: bool


@dataclass(frozen=True)
class Arranged:
    """All arrangements that a mixture may start from, and what sharing alone and leaving layers out alone choose."""

    every: list[Arrangement]
    alone: list[tuple[str, Layers]]


def survey(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    judge: Judge,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Surveyed:
    """Every single window, and the model without more and more of its layers, down to the target of `spec`."""
    single, orders, fewer, gains = [], [], [], ranks.WindowGains(view, calibration, SHARED)
    if "share" in spec.forms:
        best = Best(choose="best", sizes=spec.sizes)
        single = window_search.search(view, calibration, SHARED, best, judge.score, watch).scored
    if "drop" in spec.forms:
        wanted = Leaving(choose="layers", target_parameters=spec.target_parameters)
        reference = judge.reference(view)
        steps = layer_search.steps(view, calibration, wanted, judge.score, watch)
        orders = [layer_search.least_influence(view, calibration), layer_search.best(steps[-1]).layers if steps else []]
        divergence = cache(partial(_without, view, judge, reference))
        for most in (targets.dropped(view.shape, order, spec.target_parameters, None) for order in orders):
            fewer.append([divergence(frozenset(most[:count])) for count in watch(range(1, len(most) + 1))])
    costs = _costs(view, single, judge) if single else {}
    gone = [frozenset(order[:count]) for order, harms in zip(orders, fewer) for count in range(1, len(harms) + 1)]
    layouts = {layout for each in [frozenset(), *gone] for layout in _layouts(view, costs, each)}
    for window in watch(sorted({window for layout in layouts for window in layout})):
        gains[window]
    return Surveyed(single, orders, fewer, dict(gains))


def _costs(view: ModelView, single: list[Layout], judge: Judge) -> dict[Window, float]:
    """The rise in log perplexity of each window that alone shares."""
    original = judge.score(view)
    return {layout.windows[0]: math.log(layout.perplexity / original) for layout in single}


def _layouts(view: ModelView, costs: Mapping[Window, float], gone: Collection[int]) -> list[tuple[Window, ...]]:
    """The layouts of windows to start from where some layers are gone."""
    left = {window: cost for window, cost in costs.items() if not set(windows.layers(window)) & set(gone)}
    return [layout for _, layout in windows.layouts(left, view.depth, 1)]


def _without(view: ModelView, judge: Judge, reference: Any, gone: Collection[int]) -> float:
    """The divergence of the model without some layers."""
    return judge.divergence(keep_layers(view, [layer for layer in range(view.depth) if layer not in gone]), reference)


def arrange(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    surveyed: Surveyed,
    judge: Judge,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Arranged:
    """Layouts of windows by the search of method share, times layers that are gone, as far as `spec` allows.

    A layout is the cheapest of its number of windows and of layers saved, by the costs of its single windows, or that
    which sharing alone chooses. surveyed: of the same forms, for this target or a smaller one.
    """
    alone, costs, chosen, fewer = [], {}, (), {(): 0.0}
    gains = ranks.WindowGains(view, calibration, SHARED, surveyed.gains)
    if "share" in spec.forms:
        costs = _costs(view, surveyed.windows, judge)
        own = _windows(view, calibration, spec, surveyed.windows, gains, judge, watch)
        chosen = tuple((group[0], group[-1]) for _, layers in own for group in layers.groups)
        alone += own
    if "drop" in spec.forms:
        for order, harms in zip(surveyed.orders, surveyed.fewer):
            most = targets.dropped(view.shape, order, spec.target_parameters, None)
            gone = [tuple(sorted(most[:count])) for count in range(1, len(most) + 1)]
            fewer |= zip(gone, harms)
            stored = view.shape.parameters - sum(view.shape.stage_of(layer).block for layer in most)
            dropped = ("drop", Layers(gone=sorted(most)))
            if stored <= targets.target(view.shape, spec.target_parameters) and dropped not in alone:
                alone.append(dropped)
    deltas, every = cache(partial(_deltas, view, gains)), []
    for gone, harm in fewer.items():
        saved = sum(view.shape.stage_of(layer).block - view.shape.ffn_matrices_of(layer) for layer in gone)
        left = tuple(window for window in chosen if not set(windows.layers(window)) & set(gone))
        for layout in dict.fromkeys([*_layouts(view, costs, gone), *([left] if left else []), *([()] if gone else [])]):
            groups = [windows.layers(window) for window in layout]
            bases = sum(view.shape.ffn_matrices_of(group[0]) for group in groups)
            options = {matrix: found for window in layout for matrix, found in deltas(window).items()}
            every.append(Arrangement(groups, list(gone), bases - saved, harm, options, bool(layout) and layout == left))
    return Arranged(every, alone)


def _windows(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    single: list[Layout],
    gains: ranks.WindowGains,
    judge: Judge,
    watch: Callable[[Iterable], Iterable],
) -> list[tuple[str, Layers]]:
    """What method share chooses, where such windows alone can reach the target."""
    budget = Budget(choose="budget", sizes=spec.sizes, target_parameters=spec.target_parameters)
    if list(rules.variant_mistakes("", Variant(windows=budget, surgery=SHARED, finetune={}), view.shape)):
        return []
    chosen = window_search.search(view, calibration, SHARED, budget, judge.score, watch, single, gains).chosen
    return [("share", Layers([windows.layers(window) for window in chosen.windows], chosen.ranks))]


def _deltas(view: ModelView, gains: ranks.WindowGains, window: Window) -> dict[Matrix, list[Option]]:
    """Every rank of the delta of each matrix of a window that stores less than the matrix, as an option."""
    return {matrix: list(_options(view, matrix, values.tolist())) for matrix, values in gains[window].items()}


def _options(view: ModelView, matrix: Matrix, gains: list[float]) -> Iterator[Option]:
    d_out, d_in = view.shape.matrices_of(matrix[0])[matrix[1]]
    left = sum(gains)
    for rank, gain in enumerate([0.0, *gains]):
        left -= gain
        form = {"form": "low_rank", "rank": rank}
        if (stored := stored_by(form, d_out, d_in)) <= d_out * d_in:
            yield Option(stored, max(left, 0.0), form)
