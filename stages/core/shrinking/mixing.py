"""One budget over all forms: each FFN matrix stays dense, becomes a product of two thin ones, or keeps few entries.

Every matrix has options, each with what it stores and the relative error E|(W - W') x|^2 / E|W x|^2 that it leaves on
calibration text. Errors of different matrices harm a model differently, so each matrix is probed: alone in its place,
two options of rising error give the rise of log perplexity on held-out text. Between the probes the harm is a straight
line; a small share of the error itself is added, which orders what the probes cannot tell from nothing. A budget is
then spent by one price: the steepest falls of harm per stored parameter, over the lower convex hulls of all matrices
(Everett 1963). Several such plans are scored on the held-out text as whole models; the best is kept.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture import targets
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import SITE, Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms.counting import mask_size
from stages.core.forms.structure import Sharing, install
from stages.core.settings.variants import Forms
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.lowrank import weighted

SHARES = tuple(share / 20 for share in range(1, 20))  # of a matrix's entries, that sparse options keep
PROBED = (0.5, 0.25)  # shares of a matrix's parameters that its probes store
GONE = {"form": "low_rank", "rank": 0}
# Weights of the relative error beside what the probes say. None: the error alone decides.
TRUSTED = (None, 0.001, 0.003, 0.01)


Form = dict[str, Any]
Plan = dict[str, dict[str, Form]]  # layer, as JSON's string -> role -> form
Harm = Callable[[Matrix, float], float]  # a matrix and a relative error -> the rise of log perplexity


@dataclass(frozen=True)
class Option:
    """A form of one matrix: what it stores, the relative error that it leaves, and the form as a plan names it.

    form: {form: dense}, {form: low_rank, rank} or {form: sparse, kept, score}; rank 0 leaves nothing of the matrix.
    """

    stored: int
    error: float
    form: Form


@dataclass(frozen=True)
class Tried:
    """A plan as a whole model: the forms it may use, the weight of the error itself, its held-out perplexity."""

    forms: list[str]
    trusted: float | None
    perplexity: float
    plan: Plan


@dataclass(frozen=True)
class Probed:
    """What a search needs to know whatever the budget: the original's perplexity, all options, and their probes."""

    original: float
    options: dict[Matrix, list[Option]]
    probes: dict[Matrix, list[tuple[float, float]]]


@torch.no_grad()
def probe_all(
    view: ModelView,
    calibration: Calibration,
    forms: Iterable[str],
    score: Callable[[ModelView], float],
    watch: Callable[[Iterable], Iterable] = iter,
) -> Probed:
    """The options of every matrix, two of them tried alone. `score` maps a model to its held-out perplexity."""
    original, found, probes = score(view), {}, {}
    for layer, role in watch(matrices(view)):
        found[layer, role] = options(view, calibration, layer, role, forms)
        probes[layer, role] = probe(view, calibration, (layer, role), found[layer, role], score, original)
    return Probed(original, found, probes)


@torch.no_grad()
def search(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    probed: Probed,
    score: Callable[[ModelView], float],
    watch: Callable[[Iterable], Iterable] = iter,
) -> list[Tried]:
    """Every plan that was scored, the best first.

    Each form alone is tried, too, as its baseline spends the budget. So the best plan is no worse on the text of
    `score` than the best of these baselines.
    """
    room = targets.room(view.shape, spec.target_parameters)
    plans = [
        (list(forms), trusted, _plan(allot(_of_forms(probed.options, forms), harm_by(probed.probes, trusted), room)))
        for forms in dict.fromkeys([tuple(spec.forms), *((form,) for form in spec.forms)])
        for trusted in TRUSTED
    ] + [([form], None, plan) for form in spec.forms for plan in SINGLE[form](view, calibration, room)]
    tried = [
        Tried(forms, trusted, score(mix(view, calibration, plan)[0]), plan) for forms, trusted, plan in watch(plans)
    ]
    return sorted(tried, key=_perplexity)


def _perplexity(tried: Tried) -> float:
    return tried.perplexity


def _of_forms(found: Mapping[Matrix, list[Option]], forms: Iterable[str]) -> dict[Matrix, list[Option]]:
    """The options of some forms; every matrix may stay dense or go."""
    always = ({"form": "dense"}, GONE)
    return {
        matrix: [option for option in every if option.form in always or option.form["form"] in forms]
        for matrix, every in found.items()
    }


def _plan(chosen: Mapping[Matrix, Option]) -> Plan:
    plan: Plan = {}
    for (layer, role), option in chosen.items():
        plan.setdefault(str(layer), {})[role] = option.form
    return plan


def matrices(view: ModelView) -> list[Matrix]:
    """(layer, role) of every FFN matrix."""
    return [(layer, role) for layer in range(view.depth) for role in view.roles]


def options(
    view: ModelView, calibration: Calibration, layer: int, role: str, forms: Iterable[str] = ("low_rank", "sparse")
) -> list[Option]:
    """What may become of a matrix: nothing of it is left, all ranks and densities that store less, or all of it."""
    weight, moments = _matrix(view, calibration, layer, role)
    whole, root = weight.numel(), moments.root
    gains = budgets.gains(weight @ root, weight @ root)
    total = (weight @ root).square().sum()
    if total == 0:
        return [Option(0, 0.0, GONE)]
    left = (gains.sum() - gains.cumsum(0)).clamp_min(0).tolist()
    found = [Option(0, 1.0, GONE), Option(whole, 0.0, {"form": "dense"})]
    if "low_rank" in forms:
        found += [
            Option(rank * sum(weight.shape), left[rank - 1], {"form": "low_rank", "rank": rank})
            for rank in range(1, len(left) + 1)
            if rank * sum(weight.shape) < whole
        ]
    if "sparse" in forms:
        for score in ("magnitude", "input"):
            for kept in (int(share * whole) for share in SHARES):
                if kept + mask_size(whole) < whole:
                    missing = (weight - sparse(weight, moments, kept, score)) @ root
                    form = {"form": "sparse", "kept": kept, "score": score}
                    found.append(Option(kept + mask_size(whole), (missing.square().sum() / total).item(), form))
    return found


def sparse(weight: Tensor, moments: Moments, kept: int, score: str) -> Tensor:
    """The matrix with its `kept` largest entries, by magnitude or by the score `input` of `baselines.prune`."""
    sizes = weight.abs()
    if score == "input":
        sizes = sizes * moments.second.diagonal().clamp_min(0).sqrt()
    stay = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    stay[sizes.flatten().topk(kept).indices] = 1
    return weight * stay.view_as(weight)


def probe(
    view: ModelView,
    calibration: Calibration,
    matrix: Matrix,
    every: list[Option],
    score: Callable[[ModelView], float],
    original: float,
) -> list[tuple[float, float]]:
    """(relative error, rise of log perplexity) of a matrix alone in an option that stores each share of PROBED."""
    layer, role = matrix
    whole = max(option.stored for option in every)
    found = []
    for share in PROBED:
        near = [option for option in every if 0 < option.stored <= share * whole]
        if not near:
            continue
        option = min(near, key=lambda one: one.error)
        changed, _ = mix(view, calibration, {str(layer): {role: option.form}})
        found.append((option.error, math.log(score(changed) / original)))
    return sorted(found)


def harm_by(probes: Mapping[Matrix, list[tuple[float, float]]], trusted: float | None) -> Harm:
    """A function that says what a relative error of a matrix costs in log perplexity.

    It runs straight from no harm at no error through the probes and on beyond the last, where it never falls, plus
    `trusted` times the error. Without `trusted` it is the error itself.
    """
    if trusted is None:
        return lambda matrix, error: error

    def harm(matrix: Matrix, error: float) -> float:
        before, rise = (0.0, 0.0), 0.0
        for at, measured in probes[matrix]:
            after = (at, max(measured, before[1]))
            if at <= before[0]:
                continue
            rise = (after[1] - before[1]) / (after[0] - before[0])
            if error <= at:
                return before[1] + rise * (error - before[0]) + trusted * error
            before = after
        return before[1] + rise * (error - before[0]) + trusted * error

    return harm


def allot(every: Mapping[Matrix, list[Option]], harm: Harm, room: int) -> dict[Matrix, Option]:
    """The option of each matrix, all together storing at most `room`, that leave little harm at one price.

    At a room that the last step fills exactly no other choice leaves less (Everett 1963).
    """
    chosen, steps = {}, []
    for matrix, found in every.items():
        hull = _hull(sorted((option.stored, harm(matrix, option.error), number) for number, option in enumerate(found)))
        chosen[matrix] = found[hull[0][2]]
        steps += [
            ((worse - better) / (more - less), matrix, number, after)
            for (less, worse, number), (more, better, after) in zip(hull, hull[1:])
            if worse > better
        ]
    room -= sum(option.stored for option in chosen.values())
    # `steps` of a matrix come in order: its hull grows flatter. A step too large for the room ends that matrix's.
    for _, matrix, number, after in sorted(steps, reverse=True):
        found = every[matrix]
        growth = found[after].stored - found[number].stored
        if chosen[matrix] is found[number] and growth <= room:
            chosen[matrix], room = found[after], room - growth
    return chosen


def _hull(points: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """The lower convex hull of (stored, harm, number), sorted by what they store."""
    hull: list[tuple[int, float, int]] = []
    for point in points:
        if hull and point[0] == hull[-1][0]:
            continue  # of those that store as much, the first harms least
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(one: tuple[int, float, int], other: tuple[int, float, int]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


@torch.no_grad()
def mix(view: ModelView, calibration: Calibration, plan: Plan) -> tuple[ModelView, Sharing]:
    """The model whose matrices have the forms of `plan`; those that it does not name stay dense.

    Biases, where there are any, take up the mean of what a form leaves, (W - W') E[x].
    """
    changed, sharing = view.copy(), Sharing(**_sizes(plan))
    install(changed, sharing)
    for layer, role, form in ((int(layer), role, form) for layer in plan for role, form in plan[layer].items()):
        if form["form"] == "dense":
            continue
        weight, moments = _matrix(view, calibration, layer, role)
        linear = changed.linears(layer)[role]
        if form["form"] == "sparse":
            linear.store(sparse(weight, moments, form["kept"], form["score"]).to(linear.values.dtype))
            new = linear.matrix()
        else:
            if form["rank"]:
                for factor, value in zip((linear.A, linear.B), weighted(weight, form["rank"], moments)):
                    factor.copy_(value)
            new = linear.delta()
        if linear.bias is not None:
            own, mean = view.read_double(layer)[f"b_{role}"], calibration.moments(layer)[SITE[role]].mean
            linear.bias.copy_(own + (weight - new.double()) @ mean)
    return changed, sharing


def _sizes(plan: Plan) -> dict[str, Any]:
    """What `Sharing` says of a plan: the ranks of what is factored, and how many entries masked matrices keep."""
    ranks: dict[str, dict[str, int]] = {}
    kept: dict[str, dict[str, int]] = {}
    for layer, roles in plan.items():
        for role, form in roles.items():
            if form["form"] == "low_rank":
                ranks.setdefault(layer, {})[role] = form["rank"]
            elif form["form"] == "sparse":
                kept.setdefault(layer, {})[role] = form["kept"]
    return {"ranks": ranks, "factored": bool(ranks), "kept": kept}


def _factored(view: ModelView, calibration: Calibration, room: int) -> list[Plan]:
    """The plans of `baselines.low_rank`: ranks that take the same share of every matrix, and ranks by gain alone."""
    shapes = {(layer, role): view.shape.matrices[role] for layer, role in matrices(view)}
    share = room / (view.depth * view.shape.ffn_matrices)
    equal = {matrix: int(share * d_out * d_in / (d_out + d_in)) for matrix, (d_out, d_in) in shapes.items()}
    gains = {}
    for layer, role in shapes:
        weight, moments = _matrix(view, calibration, layer, role)
        gains[layer, role] = budgets.gains(weight @ moments.root, weight @ moments.root)
    plans = []
    for ranks in (equal, budgets.factor_or_keep(gains, shapes, room)):
        plan: Plan = {}
        for (layer, role), rank in ranks.items():
            plan.setdefault(str(layer), {})[role] = {"form": "low_rank", "rank": rank}
        plans.append(plan)
    return plans


def _pruned(view: ModelView, calibration: Calibration, room: int) -> list[Plan]:
    """The plan of `baselines.prune`: the largest entries of all matrices together, by magnitude."""
    sizes = [_matrix(view, calibration, *matrix)[0].abs().flatten() for matrix in matrices(view)]
    kept = room - sum(mask_size(len(each)) for each in sizes)
    stay = torch.zeros(sum(map(len, sizes)))
    stay[torch.cat(sizes).topk(max(0, min(kept, len(stay)))).indices] = 1
    plan: Plan = {}
    for (layer, role), mask in zip(matrices(view), stay.split([len(each) for each in sizes])):
        entries = int(mask.sum().item())
        if entries + mask_size(len(mask)) < len(mask):
            plan.setdefault(str(layer), {})[role] = {"form": "sparse", "kept": entries, "score": "magnitude"}
    return [plan]


SINGLE = {"low_rank": _factored, "sparse": _pruned}


def _matrix(view: ModelView, calibration: Calibration, layer: int, role: str) -> tuple[Tensor, Moments]:
    """A matrix, float64, and the moments of its input: centred where a bias takes up the mean."""
    ffn, moments = view.read_double(layer), calibration.moments(layer)[SITE[role]]
    return ffn[f"w_{role}"], moments.centred() if f"b_{role}" in ffn else moments
