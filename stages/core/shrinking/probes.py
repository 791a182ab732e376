"""What an error of one FFN matrix costs the whole model: each matrix is changed alone, and the answers are compared.

The harm of a change is the mean KL divergence of the original's answers from the changed model's on held-out data. It
is never negative, and for small changes it grows like the relative error of the matrix. Harms of independent changes
add up, where differences of losses at such sizes are mostly noise.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from stages.core.architecture.depth import record_states, resume_at
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.limits import COMPARED, STATES
from stages.core.shrinking.making import mix
from stages.core.shrinking.options import DENSE, GONE, Option, matrices, options

PROBED = (0.5, 0.25)  # shares of a matrix's parameters that its probes store

Harm = Callable[[Matrix, Option], float]  # what an option of a matrix costs the model
Probes = Mapping[Matrix, Mapping[str, list[tuple[float, float]]]]  # matrix -> form -> (relative error, divergence)


@dataclass(frozen=True)
class Judge:
    """How a model is judged on held-out data. All must run a model on the same inputs in the same order.

    score: a model's perplexity. reference: a model's answers. divergence: how far a model's answers are from these.
    """

    score: Callable[[ModelView], float]
    reference: Callable[[ModelView], Any]
    divergence: Callable[[ModelView, Any], float]


def judge_by(task: Any, held_out: Any, device: Any) -> Judge:
    """The judge that a task makes of its held-out data; answers are compared on the first COMPARED of it."""
    few = held_out[:COMPARED]

    def model(view: ModelView) -> Any:
        return view.to(device).model

    return Judge(
        lambda view: task.score(model(view), held_out),
        lambda view: task.reference(model(view), few),
        lambda view, reference: task.divergence(model(view), few, reference),
    )


@dataclass(frozen=True)
class Probed:
    """What a search needs to know whatever the budget: the original's perplexity, all options, and their probes."""

    original: float
    options: dict[Matrix, list[Option]]
    probes: Probes


@torch.no_grad()
def probe_all(
    view: ModelView,
    calibration: Calibration,
    forms: Iterable[str],
    judge: Judge,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Probed:
    """The options of every matrix, and two of each form tried alone.

    What comes before the changed layer is the original: its forward passes are recorded once, within STATES bytes, and
    those of a changed model start from there.
    """
    found, probes, forms, reference = {}, {}, probed_forms(forms), judge.reference(view)
    with record_states(view, range(1, view.depth), STATES) as states:
        judge.divergence(view, reference)
    for layer, role in watch(matrices(view)):
        found[layer, role] = every = options(view, calibration, layer, role, forms)
        start = max((before for before in states.before if before <= layer), default=None)
        probes[layer, role] = {form: [] for form in forms}
        for form, option in tried(every, forms):
            changed, _ = mix(view, calibration, {str(layer): {role: option.form}})
            with nullcontext() if start is None else resume_at(changed, start, states):
                probes[layer, role][form].append((option.error, judge.divergence(changed, reference)))
    return Probed(judge.score(view), found, probes)


def probed_forms(forms: Iterable[str]) -> list[str]:
    """The forms that single matrices are probed in: deltas of shared layers are judged as low rank is."""
    forms = list(forms)
    return [form for form in ("low_rank", "sparse") if form in forms or (form == "low_rank" and "share" in forms)]


def tried(every: list[Option], forms: Iterable[str]) -> list[tuple[str, Option]]:
    """The options of a matrix that are tried alone: of each form the best that stores each share of PROBED."""
    whole, found = max(option.stored for option in every), []
    for form in forms:
        for share in PROBED:
            near = [o for o in every if o.form["form"] == form and 0 < o.stored <= share * whole]
            if near:
                found.append((form, min(near, key=lambda option: option.error)))
    return found


def harm_by(probes: Probes | None) -> Harm:
    """A function that says what an option of a matrix costs: its divergence by the probes of its form.

    It runs straight from no harm at no error through the probes and on beyond the last, and never falls. What leaves
    nothing of a matrix is judged by the form of the least harm. Without probes it is the relative error itself.
    """
    if probes is None:
        return lambda matrix, option: option.error

    def harm(matrix: Matrix, option: Option) -> float:
        if option.form == DENSE:
            return 0.0
        lines = probes[matrix]
        if option.form != GONE:
            return along(lines[option.form["form"]], option.error)
        return min((along(line, option.error) for line in lines.values() if line), default=option.error)

    return harm


def along(probes: Iterable[tuple[float, float]], error: float) -> float:
    """The harm at a relative error, on the line from (0, 0) through the probes; without any, the error itself."""
    before, rise = (0.0, 0.0), None
    for at, measured in sorted(probes):
        after = (at, max(measured, before[1]))
        if at <= before[0]:
            continue
        rise = (after[1] - before[1]) / (after[0] - before[0])
        if error <= at:
            break
        before = after
    return error if rise is None else before[1] + rise * (error - before[0])
