"""Every way to store less, made at a given size: what stands in the curve of size against perplexity."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.core.architecture import rules, targets
from stages.core.architecture.shape import Shape
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.settings.surgeries import Surgery
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Forms
from stages.core.shrinking import arranging, layer_search, making, mixing, probes
from stages.core.shrinking.operations import operate

SIZES = (2, 3, 4, 6)  # layers of a window


@dataclass(frozen=True)
class Method:
    """A way to store less. windows, surgery: as of a variant, without the size. speed: what running it takes.

    others: changes of the surgery, of which validation text chooses one or none.
    """

    windows: Mapping[str, Any]
    surgery: Mapping[str, Any]
    speed: str
    others: tuple[Mapping[str, Any], ...] = ()

    def variant(self, share: float, longest: int = max(SIZES)) -> Variant:
        """The variant that stores this share of the original's parameters. longest: layers of a window."""
        sized = {"target_parameters": share}
        chosen = dict(self.windows) | (sized if self.windows["choose"] in ("budget", "forms", "layers") else {})
        if "sizes" in chosen:
            chosen["sizes"] = [size for size in chosen["sizes"] if size <= longest] or chosen["sizes"][:1]
        surgery = dict(self.surgery) | ({} if chosen.keys() & sized.keys() else sized)
        return Variant(windows=chosen, surgery=surgery, finetune={})

    def surgeries(self, share: float) -> list[Surgery]:
        """Every surgery that it may have at this share."""
        surgery = self.variant(share).surgery
        return [surgery, *(surgery.model_copy(update=change) for change in self.others)]


NO_WINDOWS = {"choose": "none"}
WEIGHTED = {"method": "low_rank", "fit": "weighted", "bias_correction": True}
ORDINARY, FEWER, SPARSE = "ordinary matrices", "fewer layers", "sparse storage"
# Windows and ranks of softshare are searched without the repair, which reads the calibration text for each model.
REPAIRED = making.SHARED.model_copy(update={"repair": "least_squares"}).model_dump()
METHODS = {
    "softshare": Method({"choose": "budget", "sizes": SIZES}, REPAIRED, ORDINARY, ({"refit_others": True},)),
    "svd": Method(NO_WINDOWS, {"method": "low_rank", "fit": "svd", "ranks": "equal"}, ORDINARY),
    "svd_weighted": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "filled"}, ORDINARY),
    "svd_weighted_equal": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "equal"}, ORDINARY),
    "basis_2": Method(NO_WINDOWS, {**WEIGHTED, "ranks": "equal", "basis": 2}, ORDINARY),
    "dropped": Method(NO_WINDOWS, {"method": "drop"}, FEWER),
    "dropped_searched": Method({"choose": "layers"}, {"method": "drop"}, FEWER),
    "mix_low_rank": Method({"choose": "forms", "forms": ["low_rank"]}, {"method": "mix"}, ORDINARY),
    "pruned": Method(NO_WINDOWS, {"method": "prune"}, SPARSE),
    "pruned_input": Method(NO_WINDOWS, {"method": "prune", "score": "input", "scope": "row"}, SPARSE),
    "mix_ordinary": Method(
        {"choose": "forms", "forms": ["low_rank", "share", "drop"], "sizes": SIZES}, {"method": "mix"}, ORDINARY
    ),
    "mix": Method(
        {"choose": "forms", "forms": ["low_rank", "sparse", "share", "drop"], "sizes": SIZES}, {"method": "mix"}, SPARSE
    ),
}


def fits(name: str, share: float, shape: Shape, longest: int) -> bool:
    """Whether a method can store this share of a model of this shape. longest: layers of a window."""
    return not list(rules.variant_mistakes(name, METHODS[name].variant(share, longest), shape))


def plans(shares: Iterable[float], shape: Shape, longest: int) -> list[tuple[str, float]]:
    """(method, share) of every method at every share that it can reach. longest: layers of a window."""
    return [(name, share) for share in shares for name in METHODS if fits(name, share, shape, longest)]


def in_mixture(name: str) -> bool:
    """Whether the search of a mixture of all forms tries what a method would choose."""
    return METHODS[name].windows["choose"] != "none"


def probe(view: ModelView, calibration: Calibration, judge: probes.Judge) -> probes.Probed:
    """What each matrix alone costs in each form, for mixtures of any size."""
    return probes.probe_all(view, calibration, ["low_rank", "sparse"], judge)


def survey(
    view: ModelView, calibration: Calibration, judge: probes.Judge, smallest: float, longest: int
) -> arranging.Surveyed:
    """What each window alone costs, and what the first layers that are gone do, for mixtures down to a share."""
    return arranging.survey(view, calibration, _mixture(smallest, longest), judge)


def tried(
    share: float,
    view: ModelView,
    calibration: Calibration,
    judge: probes.Judge,
    probed: probes.Probed,
    surveyed: arranging.Surveyed,
    longest: int,
) -> list[mixing.Tried]:
    """What the search of a mixture of all forms tries at a share, the best first; for `kinds`."""
    return mixing.search(view, calibration, _mixture(share, longest), probed, judge, surveyed=surveyed)


def _mixture(share: float, longest: int) -> Forms:
    return METHODS["mix"].variant(share, longest).windows.model_copy(update={"refit": True})


def kinds(found: Iterable[mixing.Tried], name: str) -> list[mixing.Tried]:
    """What a method may be of all that the search of a mixture has tried, the best first; see `in_mixture`.

    Of a mixture these are the best of each set of its forms, fitted again and not: which recovers best, only a recovery
    tells.
    """
    windows = METHODS[name].windows
    if form := {"budget": "share", "layers": "drop"}.get(windows["choose"]):
        return [next(one for one in found if (one.forms, one.by) == ([form], "baseline"))]
    best: dict[tuple[frozenset[str], bool], mixing.Tried] = {}
    for one in found:
        if (forms := frozenset(one.forms)) <= set(windows["forms"]):
            best.setdefault((forms, one.by == "refit"), one)
    return list(best.values())


class Made(NamedTuple):
    """An untrained model, its structure, and the original's layers that it keeps, None for all."""

    view: ModelView
    sharing: Sharing
    kept: list[int] | None


def make(
    name: str,
    share: float,
    view: ModelView,
    calibration: Calibration,
    chosen: mixing.Tried | None = None,
) -> Iterator[Made]:
    """The untrained models of a method at a share, one for each of its surgeries.

    chosen: one of `kinds`, for the methods that are `in_mixture`.
    """
    for surgery in METHODS[name].surgeries(share):
        yield Made(*_made(surgery, share, view, calibration, chosen))


def _made(surgery, share, view, calibration, chosen) -> tuple[ModelView, Sharing, list[int] | None]:
    if surgery.method == "share":
        return *operate(view, chosen.layers.groups, calibration, surgery, chosen.layers.ranks), None
    if chosen:
        gone = chosen.layers.gone
        kept = [layer for layer in range(view.depth) if layer not in gone] if gone else None
        return *making.mix(view, calibration, chosen.plan, chosen.layers, chosen.by == "refit"), kept
    if surgery.method == "drop":
        order = layer_search.least_influence(view, calibration)
        gone = targets.dropped(view.shape, order, share, None)
        kept = [layer for layer in range(view.depth) if layer not in gone]
        return *operate(view, [], calibration, surgery, dropped=gone), kept
    return *operate(view, [], calibration, surgery), None
