"""Every way to store less, made at a given size: what stands in the curve of size against perplexity."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.architecture import rules, targets, windows
from stages.core.architecture.shape import Shape
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.settings.variants import Variant
from stages.core.shrinking import layer_search, making, mixing, probes, window_search
from stages.core.shrinking.operations import operate

FORMS = ("low_rank", "sparse")
LAYERS = ("share", "drop")


@dataclass(frozen=True)
class Method:
    """A way to store less. windows, surgery: as of a variant, without the size. speed: what running it takes."""

    windows: Mapping[str, Any]
    surgery: Mapping[str, Any]
    speed: str

    def variant(self, share: float) -> Variant:
        """The variant that stores this share of the original's parameters."""
        sized = {"target_parameters": share}
        chosen = dict(self.windows) | (sized if self.windows["choose"] in ("budget", "forms", "layers") else {})
        surgery = dict(self.surgery) | ({} if chosen.keys() & sized.keys() else sized)
        return Variant(windows=chosen, surgery=surgery, finetune={})


NO_WINDOWS = {"choose": "none"}
WEIGHTED = {"method": "low_rank", "fit": "weighted", "bias_correction": True}
ORDINARY, FEWER, SPARSE = "ordinary matrices", "fewer layers", "sparse storage"
METHODS = {
    "softshare": Method(
        {"choose": "budget", "sizes": [2, 3]},
        {"method": "share", "delta": "joint", "rank": 8, "bias_correction": True},
        ORDINARY,
    ),
    "svd": Method(NO_WINDOWS, {"method": "low_rank", "fit": "svd", "ranks": "equal"}, ORDINARY),
    "svd_weighted": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "filled"}, ORDINARY),
    "svd_weighted_equal": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "equal"}, ORDINARY),
    "basis_2": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "equal", "basis": 2}, ORDINARY),
    "dropped": Method(NO_WINDOWS, {"method": "drop"}, FEWER),
    "dropped_searched": Method({"choose": "layers"}, {"method": "drop"}, FEWER),
    "mix_low_rank": Method({"choose": "forms", "forms": ["low_rank"]}, {"method": "mix"}, ORDINARY),
    "pruned": Method(NO_WINDOWS, {"method": "prune"}, SPARSE),
    "pruned_input": Method(NO_WINDOWS, {"method": "prune", "score": "input", "scope": "row"}, SPARSE),
    "mix_ordinary": Method({"choose": "forms", "forms": ["low_rank", *LAYERS]}, {"method": "mix"}, ORDINARY),
    "mix": Method({"choose": "forms", "forms": [*FORMS, *LAYERS]}, {"method": "mix"}, SPARSE),
}


def fits(name: str, share: float, shape: Shape) -> bool:
    """Whether a method can store this share of a model of this shape."""
    return not list(rules.variant_mistakes(name, METHODS[name].variant(share), shape))


def plans(shares: Iterable[float], shape: Shape) -> list[tuple[str, float]]:
    """(method, share) of every method at every share that it can reach."""
    return [(name, share) for share in shares for name in METHODS if fits(name, share, shape)]


def probe(view: ModelView, calibration: Calibration, judge: probes.Judge, watch: Callable = iter) -> probes.Probed:
    """What each matrix alone costs in each form; `make` takes it for every mixture."""
    return probes.probe_all(view, calibration, FORMS, judge, watch)


def make(
    name: str,
    share: float,
    view: ModelView,
    calibration: Calibration,
    judge: probes.Judge,
    probed: Callable[[], probes.Probed],
) -> tuple[ModelView, Sharing, list[int] | None]:
    """The untrained model of a method at a share, its structure, and the layers that it keeps, None for all.

    `judge` judges models on validation text, by which windows, layers and forms are chosen. probed: a function that
    gives what `probe` does, which only mixtures ask for.
    """
    variant = METHODS[name].variant(share)
    if variant.windows.choose == "forms":
        best = mixing.search(view, calibration, variant.windows, probed(), judge)[0]
        kept = [layer for layer in range(view.depth) if layer not in best.layers.gone] if best.layers.gone else None
        return *making.mix(view, calibration, best.plan, best.layers), kept
    if variant.surgery.method == "drop":
        if variant.windows.choose == "layers":
            gone = layer_search.search(view, calibration, variant.windows, judge.score)[0].layers
        else:
            order = layer_search.least_influence(view, calibration)
            gone = targets.dropped(view.shape, order, share, None)
        kept = [layer for layer in range(view.depth) if layer not in gone]
        return *operate(view, [], calibration, variant.surgery, dropped=gone), kept
    if variant.windows.choose == "none":
        return *operate(view, [], calibration, variant.surgery), None
    chosen = window_search.search(view, calibration, variant.surgery, variant.windows, judge.score).chosen
    groups = [windows.layers(window) for window in chosen.windows]
    return *operate(view, groups, calibration, variant.surgery, chosen.ranks), None
