"""The search for layers to leave out, by perplexity on held-out text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stages.core.architecture import targets
from stages.core.architecture.depth import influence, keep_layers
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.settings.windows import Layers


@dataclass(frozen=True)
class Dropped:
    """Layers that are gone, in the order in which they went, and the perplexity without them."""

    layers: list[int]
    perplexity: float


def search(
    view: ModelView,
    calibration: Calibration,
    spec: Layers,
    score: Callable[[ModelView], float],
    watch: Callable[[Iterable], Iterable] = iter,
) -> list[Dropped]:
    """Every set of layers that was scored on the way to the target of `spec`, the chosen one first.

    One layer goes after the other: of the `shortlist` whose block influence in what is left is least, the one without
    which `score` is lowest. Layers by influence alone (Men et al. 2024, ShortGPT, arXiv:2403.03853) are tried, too. So
    the choice is no worse on the text of `score`.
    """
    order = least_influence(view, calibration)
    by_influence = _scored(view, targets.dropped(view.shape, order, spec.target_parameters, None), score)
    tried = [by_influence, *(one for step in steps(view, calibration, spec, score, watch) for one in step)]
    reached = [one for one in tried if not _short(view, one.layers, spec)]
    chosen = min(reached, key=_perplexity)
    return [chosen, *(one for one in tried if one is not chosen)]


def steps(
    view: ModelView,
    calibration: Calibration,
    spec: Layers,
    score: Callable[[ModelView], float],
    watch: Callable[[Iterable], Iterable] = iter,
) -> list[list[Dropped]]:
    """What was scored before each layer went, one after the other, until the target of `spec` is reached.

    A mixture may ask for less than layers alone can save: then until none is left that may go.
    """
    found, gone = [], []
    most = view.depth - len(view.shape.stages)
    while len(gone) < most and _short(view, gone, spec):
        left = [layer for layer in range(view.depth) if layer not in gone]
        order = [left[index] for index in least_influence(keep_layers(view, left), calibration)]
        fitting = [layer for layer in order if _may_go(view, [*gone, layer])]
        found.append([_scored(view, [*gone, layer], score) for layer in watch(fitting[: spec.shortlist])])
        gone = best(found[-1]).layers
    return found


def best(step: list[Dropped]) -> Dropped:
    """The layers without which perplexity is lowest."""
    return min(step, key=_perplexity)


def least_influence(view: ModelView, calibration: Calibration) -> list[int]:
    """All layers, the one of least block influence first."""
    return influence(view, calibration.watch(calibration.text())).argsort(stable=True).tolist()


def _perplexity(one: Dropped) -> float:
    return one.perplexity


def _scored(view: ModelView, gone: list[int], score: Callable[[ModelView], float]) -> Dropped:
    kept = [layer for layer in range(view.depth) if layer not in gone]
    return Dropped(gone, score(keep_layers(view, kept)))


def _short(view: ModelView, gone: list[int], spec: Layers) -> bool:
    """Whether the model without these layers stores more than the target."""
    saved = sum(view.shape.stage_of(layer).block for layer in gone)
    return view.shape.parameters - saved > targets.target(view.shape, spec.target_parameters)


def _may_go(view: ModelView, gone: list[int]) -> bool:
    """Whether every stage keeps a layer."""
    return all(set(range(stage.first, stage.first + stage.depth)) - set(gone) for stage in view.shape.stages)
