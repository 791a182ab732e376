"""Every way to store less, made at a given size: what stands in the curve of size against perplexity."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.architecture import rules, windows
from stages.core.architecture.shape import Shape
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.settings.variants import Variant
from stages.core.shrinking import making, mixing, probes, window_search
from stages.core.shrinking.operations import operate

FORMS = ("low_rank", "sparse")


@dataclass(frozen=True)
class Method:
    """A way to store less. windows, surgery: as of a variant, without the size. speed: what running it takes."""

    windows: Mapping[str, Any]
    surgery: Mapping[str, Any]
    speed: str

    def variant(self, share: float) -> Variant:
        """The variant that stores this share of the original's parameters."""
        sized = {"target_parameters": share}
        chosen = dict(self.windows) | (sized if self.windows["choose"] in ("budget", "forms") else {})
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
    "mix_low_rank": Method({"choose": "forms", "forms": ["low_rank"]}, {"method": "mix"}, ORDINARY),
    "pruned": Method(NO_WINDOWS, {"method": "prune"}, SPARSE),
    "pruned_input": Method(NO_WINDOWS, {"method": "prune", "score": "input", "scope": "row"}, SPARSE),
    "mix": Method({"choose": "forms", "forms": list(FORMS)}, {"method": "mix"}, SPARSE),
}


def fits(name: str, share: float, shape: Shape) -> bool:
    """Whether a method can store this share of a model of this shape."""
    return not list(rules.variant_mistakes(name, METHODS[name].variant(share), shape))


def made(
    view: ModelView,
    calibration: Calibration,
    shares: Iterable[float],
    judge: probes.Judge,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[tuple[str, float, ModelView, Sharing]]:
    """(method, share, model, structure) for every method at every share that it can reach, untrained.

    `judge` judges models on validation text, by which windows and forms are chosen.
    """
    probed = probes.probe_all(view, calibration, FORMS, judge, watch)
    plans = [(name, share) for share in shares for name in METHODS if fits(name, share, view.shape)]
    for name, share in watch(plans):
        yield name, share, *_make(view, calibration, METHODS[name].variant(share), probed, judge)


def _make(
    view: ModelView, calibration: Calibration, variant: Variant, probed: probes.Probed, judge: probes.Judge
) -> tuple[ModelView, Sharing]:
    if variant.windows.choose == "forms":
        best = mixing.search(view, calibration, variant.windows, probed, judge)[0]
        return making.mix(view, calibration, best.plan)
    if variant.windows.choose == "none":
        return operate(view, [], calibration, variant.surgery)
    chosen = window_search.search(view, calibration, variant.surgery, variant.windows, judge.score).chosen
    return operate(view, [windows.layers(w) for w in chosen.windows], calibration, variant.surgery, chosen.ranks)
