"""What may become of whole layers in a mixture: windows that share one FFN, and layers that are gone.

The deltas of a window are options of its matrices, with a relative error each as any other form has. So one price
spends a budget over them and over the matrices that stay alone; the bases are stored whatever the price.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

from stages.core.architecture import rules, targets, windows
from stages.core.architecture.depth import keep_layers
from stages.core.architecture.view import ModelView
from stages.core.architecture.windows import Window
from stages.core.calibration.statistics import Calibration
from stages.core.settings.variants import Best, Budget, Forms, Variant
from stages.core.shrinking import ranks, window_search
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.layer_search import least_influence
from stages.core.shrinking.making import SHARED, Layers
from stages.core.shrinking.options import Option, stored_by
from stages.core.shrinking.probes import Judge


@dataclass(frozen=True)
class Arrangement:
    """Groups of layers that share one FFN, and layers that are gone.

    stored: the bases, less what the layers that are gone saved beside their FFN matrices. harm: the divergence of the
    model without the layers that are gone. deltas: the ranks of every matrix of a group as options.
    """

    groups: list[list[int]]
    gone: list[int]
    stored: int
    harm: float
    deltas: dict[Matrix, list[Option]]


@dataclass(frozen=True)
class Arranged:
    """All arrangements that a mixture may start from, and what sharing alone and leaving layers out alone choose."""

    every: list[Arrangement]
    alone: list[tuple[str, Layers]]


def arrange(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    judge: Judge,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Arranged:
    """Layouts of windows by the search of method share, times the first k layers by influence, as far as `spec` allows.

    A layout is the cheapest of its number of windows and of layers saved, by the costs of its single windows.
    """
    alone, costs, chosen, fewer = [], {}, [], [([], 0.0)]
    if "share" in spec.forms:
        costs, own = _windows(view, calibration, spec, judge, watch)
        chosen = [tuple((group[0], group[-1]) for group in layers.groups) for _, layers in own]
        alone += own
    if "drop" in spec.forms:
        found, own = _gone(view, calibration, spec, judge, watch)
        fewer += found
        alone += own
    deltas = cache(partial(_deltas, view, calibration))
    every = []
    for gone, harm in fewer:
        saved = sum(view.shape.stage_of(layer).block - view.shape.ffn_matrices_of(layer) for layer in gone)
        left = {window: cost for window, cost in costs.items() if not set(windows.layers(window)) & set(gone)}
        layouts = [layout for _, layout in windows.layouts(left, view.depth, 1)]
        for layout in dict.fromkeys([*layouts, *([()] if gone else chosen)]):
            groups = [windows.layers(window) for window in layout]
            bases = sum(view.shape.ffn_matrices_of(group[0]) for group in groups)
            options = {matrix: found for window in layout for matrix, found in deltas(window).items()}
            every.append(Arrangement(groups, gone, bases - saved, harm, options))
    return Arranged(every, alone)


def _windows(
    view: ModelView, calibration: Calibration, spec: Forms, judge: Judge, watch: Callable[[Iterable], Iterable]
) -> tuple[dict[Window, float], list[tuple[str, Layers]]]:
    """What single windows cost, and what method share chooses, where such windows alone can reach the target."""
    budget = Budget(choose="budget", sizes=spec.sizes, target_parameters=spec.target_parameters)
    reached = not list(rules.variant_mistakes("", Variant(windows=budget, surgery=SHARED, finetune={}), view.shape))
    wanted = budget if reached else Best(choose="best", sizes=spec.sizes)
    found = window_search.search(view, calibration, SHARED, wanted, judge.score, watch)
    singles = [layout for layout in found.scored if len(layout.windows) == 1 and layout.ranks is None]
    costs = {layout.windows[0]: math.log(layout.perplexity / found.original) for layout in singles}
    groups = [windows.layers(window) for window in found.chosen.windows]
    return costs, [("share", Layers(groups, found.chosen.ranks))] if reached else []


def _gone(
    view: ModelView, calibration: Calibration, spec: Forms, judge: Judge, watch: Callable[[Iterable], Iterable]
) -> tuple[list[tuple[list[int], float]], list[tuple[str, Layers]]]:
    """The first k layers by influence with the divergence without them, up to those of method drop, and these."""
    order, reference = least_influence(view, calibration), judge.reference(view)
    most = targets.dropped(view.shape, order, spec.target_parameters, None)
    found = []
    for count in watch(range(1, len(most) + 1)):
        kept = [layer for layer in range(view.depth) if layer not in most[:count]]
        found.append((most[:count], judge.divergence(keep_layers(view, kept), reference)))
    saved = sum(view.shape.stage_of(layer).block for layer in most)
    reached = view.shape.parameters - saved <= targets.target(view.shape, spec.target_parameters)
    return found, [("drop", Layers(gone=most))] if reached else []


def _deltas(view: ModelView, calibration: Calibration, window: Window) -> dict[Matrix, list[Option]]:
    """Every rank of the delta of each matrix of a window that stores less than the matrix, as an option."""
    gains = ranks.gains(view, windows.layers(window), calibration, SHARED)
    return {matrix: list(_options(view, matrix, values.tolist())) for matrix, values in gains.items()}


def _options(view: ModelView, matrix: Matrix, gains: list[float]) -> Iterator[Option]:
    d_out, d_in = view.shape.matrices_of(matrix[0])[matrix[1]]
    left = sum(gains)
    for rank, gain in enumerate([0.0, *gains]):
        left -= gain
        form = {"form": "low_rank", "rank": rank}
        if (stored := stored_by(form, d_out, d_in)) <= d_out * d_in:
            yield Option(stored, max(left, 0.0), form)
