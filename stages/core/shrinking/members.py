"""The layers of a group in one order of neurons, the fit of what they share, and the walk to where they begin."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.depth import Walk
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.settings.surgeries import Collapse, Share
from stages.core.shrinking.fitting import Fit, fit

Ranks = Mapping[str, Mapping[str, int]]  # layer, as JSON's string -> role -> rank


@dataclass(frozen=True)
class Member:
    """One layer of a group: its canonical FFN and moments, float64, in the neuron order of the group's first layer."""

    ffn: Mapping[str, Tensor]
    moments: Mapping[str, Moments]


def fit_role(members: list[Member], role: str, base: str, delta: str, ranks: list[int], centred: bool = False) -> Fit:
    """The base and deltas of one role for aligned members. `centred`: a bias absorbs the mean of the inputs."""
    moments = [member.moments[SITE[role]] for member in members]
    return fit(
        [member.ffn[f"w_{role}"] for member in members],
        [m.centred() for m in moments] if centred else moments,
        base,
        delta,
        ranks,
    )


def aligned(view: ModelView, group: list[int], calibration: Calibration, spec: Share | Collapse) -> list[Member]:
    """The layers of a group in the neuron order of the first, or each in its own order if alignment is `identity`."""
    members = []
    for layer in group:
        weights = view.read_double(layer)
        moments = dict(calibration.moments(layer))
        if spec.alignment != "identity" and layer != group[0]:
            permutation = calibration.permutation(spec.alignment, spec.reference, group[0], layer)
            weights = ffn.permute(weights, permutation)
            moments["hidden"] = moments["hidden"].permuted(permutation)
        members.append(Member(weights, moments))
    return members


def walk_to(groups: list[list[int]], view: ModelView, calibration: Calibration) -> Walk:
    """A walk of the calibration text through `view` that waits before the first layer of `groups`.

    A search asks for one window after the other, so the last walk is continued where it has not passed that layer.
    """
    walk, layer = calibration.walk, min(groups)[0]
    if walk is None or walk.view.model is not view.model or walk.has_passed(layer):
        walk = Walk(view, list(calibration.text()))
    for number in range(len(walk.batches)):
        walk.advance(number, layer)
    calibration.walk = walk
    return walk.fork()
