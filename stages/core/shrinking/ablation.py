"""The rows of an ablation: every alignment with every base and delta, and every recovery of two starts."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from stages.core.architecture.view import ModelView
from stages.core.calibration.alignment import REFERENCES
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.settings.recoveries import Distill, Recovery
from stages.core.settings.surgeries import Share
from stages.core.shrinking import operations

START = ("alignment", "reference", "base", "delta", "repair")  # these name an untrained row
# (base, delta, repair) of each closed form; the first two are the baselines.
FORMS = (
    ("first", "none", "none"),
    ("mean", "none", "none"),
    ("regression", "none", "none"),
    ("mean", "none", "least_squares"),
    ("regression", "none", "least_squares"),
    ("mean", "svd", "none"),
    ("mean", "weighted", "none"),
    ("regression", "svd", "none"),
    ("regression", "weighted", "none"),
    ("regression", "joint", "none"),
    ("regression", "joint", "least_squares"),
)
# Two starts, the notes' and the joint fit, for every recovery at every rate.
STARTS = {
    "seeds": {"alignment": "pre_activation", "base": "mean", "delta": "zero"},
    "joint": {"alignment": "cost", "reference": "centre", "base": "regression", "delta": "joint"},
}
RECOVERIES: Mapping[str, Mapping[str, Any]] = {
    "deltas": {"train": "deltas"},
    "window": {"train": "window"},
    "window, distilled": {"train": "window", "distill": Distill(logits=0.5, temperature=2.0)},
    "window, warm start": {"train": "window", "warm_start": 0.25},
    "all": {"train": "all"},
}
RATES: Mapping[str, float] = {"": 1.0, ", a tenth of the rates": 0.1}


def alignments(sites: Iterable[str]) -> list[tuple[str, str]]:
    """(alignment, reference) of every way to align. sites: the sites whose correlations exist."""
    ways = [*sites, "cost"]
    return [("identity", "first"), *((way, reference) for way in ways for reference in REFERENCES)]


def specification(rank: int, **choices: Any) -> Share:
    """A specification with own, corrected biases. `rank` applies only where there is a delta."""
    rank = 0 if choices["delta"] == "none" else rank
    return Share(method="share", rank=rank, biases="own", bias_correction=True, **choices)


def untrained(
    view: ModelView, group: list[int], calibration: Calibration, sites: Iterable[str], rank: int,
    score: Callable[[ModelView], float], watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each alignment and form: the score of a model whose layers `group` share, before any training."""
    for arm in watch([(*way, *form) for way in alignments(sites) for form in FORMS]):
        choices = dict(zip(START, arm))
        shared, _ = operations.operate(view, [group], calibration, specification(rank, **choices))
        yield {**choices, "recovery": "none", "perplexity": score(shared)}


def recovered(
    view: ModelView, group: list[int], calibration: Calibration, sites: Sequence[str], rank: int,
    train: Callable[[ModelView, Sharing, Recovery], float], watch: Callable[[Iterable], Iterable] = iter,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each recovery of each start. `train` recovers a model and returns its score.

    sites: those whose correlations exist; the notes' start takes the first where theirs is none of them.
    """
    for start, name, pace in watch(list(itertools.product(STARTS, RECOVERIES, RATES))):
        choices = {"reference": "first", "repair": "none", **STARTS[start]}
        if choices["alignment"] not in (*sites, "cost"):
            choices["alignment"] = sites[0]
        shared, sharing = operations.operate(view, [group], calibration, specification(rank, **choices))
        recovery = Recovery(**{"frobenius": 0.0, "rate": RATES[pace], **RECOVERIES[name]})
        yield {**choices, "recovery": name + pace, "perplexity": train(shared, sharing, recovery)}
