"""One budget over all forms: each FFN matrix stays dense, becomes a product of two thin ones, or keeps few entries.

Every matrix has options, each with what it stores and the relative error that it leaves on calibration text. Probes
say what such an error costs the whole model. A budget is spent by one price: the steepest falls of harm per stored
parameter, over the lower convex hulls of all matrices (Everett 1963). Such plans, and those of the baselines, are
scored on held-out text as whole models; the best is kept.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch

from stages.core.architecture import targets
from stages.core.architecture.view import ModelView
from stages.core.calibration.statistics import Calibration
from stages.core.settings.surgeries import LowRank, Prune
from stages.core.settings.windows import Forms, Target
from stages.core.shrinking import baselines, budgets
from stages.core.shrinking.arranging import Arrangement, Surveyed, arrange, survey
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.making import NO_LAYERS, Layers, Plan, mix
from stages.core.shrinking.options import DENSE, GONE, Option
from stages.core.shrinking.probes import Harm, Judge, Probed, harm_by

NEAR = 1.5  # times the least excess log perplexity: what lies higher is not fitted again
SHORTLIST = 4  # arrangements of each kind that are tried as whole models


@dataclass(frozen=True)
class Tried:
    """A plan as a whole model: the forms that it may use, what spent the budget, and its held-out perplexity.

    by: `divergence` or `error`, whose sum over the matrices was kept small; `baseline`; or `refit`: another's plan, its
    output matrices fitted again at last (see `making.mix`). layers: what becomes of whole layers, where `forms` has
    `share` or `drop`.
    """

    forms: list[str]
    by: str
    perplexity: float
    plan: Plan
    layers: Layers = NO_LAYERS


@torch.no_grad()
def search(
    view: ModelView,
    calibration: Calibration,
    spec: Forms,
    probed: Probed,
    judge: Judge,
    watch: Callable[[Iterable], Iterable] = iter,
    surveyed: Surveyed | None = None,
) -> list[Tried]:
    """Every plan that was scored, the best first.

    Each form alone is tried, too, as its baselines spend the budget. So the best plan is no worse on the text of the
    judge than the best of these baselines. With `share` or `drop` among the forms, the SHORTLIST arrangements of layers
    that promise least harm are tried of each kind: layers that share, layers that are gone, and both; and the
    best of each kind with the groups that sharing alone chooses. The matrices that stay alone then have any of the
    other forms, and in further plans only low rank: these run as ordinary matrices. With `refit` the best of each set
    of forms is tried with its output matrices fitted again, where it is near the best (see `_near`).

    probed, surveyed: what `probe_all` and `survey` say for these forms or more, and this target or a smaller one; by
    default the survey is made here.
    """
    room = targets.room(view.shape, spec.target_parameters)
    ways = {"divergence": harm_by(probed.probes), "error": harm_by(None)}
    single = [form for form in spec.forms if form in SINGLE]
    together = [tuple(single), *((form,) for form in single)] if single else []
    plans = [
        (list(forms), by, _plan(allot(_of_forms(probed.options, forms), harm, room)), NO_LAYERS)
        for forms in dict.fromkeys(together)
        for by, harm in ways.items()
    ]
    for form in single:
        baseline = SINGLE[form](view, calibration, spec.target_parameters)
        plans += [([form], "baseline", plan, NO_LAYERS) for plan in baseline]
    if len(single) < len(spec.forms):
        surveyed = surveyed or survey(view, calibration, spec, judge, watch)
        arranged = arrange(view, calibration, spec, surveyed, judge, watch)
        plans += [([form], "baseline", {}, layers) for form, layers in arranged.alone]
        for alone in dict.fromkeys([tuple(single), tuple(form for form in single if form == "low_rank")]):
            own = _of_forms(probed.options, alone)
            plans += [
                ([*alone, *kinds], "divergence", plan, layers)
                for kinds, plan, layers in _promising(arranged.every, own, ways["divergence"], room)
            ]

    def scored(forms: list[str], by: str, plan: Plan, layers: Layers) -> Tried:
        changed, _ = mix(view, calibration, plan, layers, by == "refit")
        return Tried(forms, by, judge.score(changed), plan, layers)

    tried = sorted([scored(*one) for one in watch(plans)], key=_perplexity)
    if spec.refit:
        near = _near(tried, probed.original)
        tried += [scored(one.forms, "refit", one.plan, one.layers) for one in watch(near)]
    return sorted(tried, key=_perplexity)


def _near(tried: list[Tried], original: float) -> list[Tried]:
    """The best of each set of forms that is near the best of all, or the best of those without sparse matrices.

    What is best before a refit need not be after it: most is mended where whole layers are gone. tried: the best first.
    """
    best = {frozenset(one.forms): one for one in reversed(tried)}
    ordinary = {forms: one for forms, one in best.items() if "sparse" not in forms}
    found: dict[frozenset[str], Tried] = {}
    for some in (best, ordinary):
        excess = {forms: math.log(one.perplexity / original) for forms, one in some.items()}
        least = min(excess.values(), default=0.0)
        found |= {forms: some[forms] for forms in some if excess[forms] <= max(least, NEAR * least)}
    return list(found.values())


def _perplexity(tried: Tried) -> float:
    return tried.perplexity


def _of_forms(found: Mapping[Matrix, list[Option]], forms: Iterable[str]) -> dict[Matrix, list[Option]]:
    """The options of some forms; every matrix may stay dense or go."""
    return {
        matrix: [option for option in every if option.form in (DENSE, GONE) or option.form["form"] in forms]
        for matrix, every in found.items()
    }


def _plan(chosen: Mapping[Matrix, Option]) -> Plan:
    plan: Plan = {}
    for (layer, role), option in chosen.items():
        plan.setdefault(str(layer), {})[role] = option.form
    return plan


def _promising(
    arrangements: Iterable[Arrangement], own: Mapping[Matrix, list[Option]], harm: Harm, room: int
) -> Iterator[tuple[list[str], Plan, Layers]]:
    """What to try of arrangements of layers: the kinds of their forms, and for each kind those of least summed harm.

    own: the options of the matrices that stay alone.
    """
    found: dict[tuple[str, ...], list[tuple[float, int, bool, Plan, Layers]]] = {}
    for number, one in enumerate(arrangements):
        taken = {layer for group in one.groups for layer in group}
        alone = {key: every for key, every in own.items() if key[0] not in taken and key[0] not in one.gone}
        if one.stored > room:
            continue
        chosen = allot(alone | one.deltas, harm, room - one.stored)
        ranks: dict[str, dict[str, int]] = {}
        for layer, role in one.deltas:
            ranks.setdefault(str(layer), {})[role] = chosen[layer, role].form["rank"]
        total = one.harm + sum(harm(matrix, option) for matrix, option in chosen.items())
        plan = _plan({matrix: chosen[matrix] for matrix in alone})
        kinds = ("share",) * bool(one.groups) + ("drop",) * bool(one.gone)
        found.setdefault(kinds, []).append((total, number, one.scored, plan, Layers(one.groups, ranks, one.gone)))
    for kinds, every in found.items():
        every.sort(key=itemgetter(0, 1))
        best = every[:SHORTLIST]
        # What single windows promise of many may be far off: groups that were chosen by whole models are tried, too.
        if not any(scored for _, _, scored, *_ in best):
            best += [one for one in every if one[2]][:1]
        for _, _, _, plan, layers in best:
            yield list(kinds), plan, layers


def allot(every: Mapping[Matrix, list[Option]], harm: Harm, room: int) -> dict[Matrix, Option]:
    """The option of each matrix, all together storing at most `room`, that leave little harm at one price.

    At a room that the last step fills exactly no other choice leaves less (Everett 1963).
    """
    chosen, steps = {}, []
    for matrix, found in every.items():
        hull = budgets.hull(
            sorted((option.stored, harm(matrix, option), number) for number, option in enumerate(found))
        )
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


def _factored(view: ModelView, calibration: Calibration, target: Target) -> Iterator[Plan]:
    """The plans of `baselines.low_rank`: ranks that take the same share of every matrix, and ranks by gain alone."""
    for way in ("equal", "filled"):
        spec = LowRank(method="low_rank", fit="weighted", ranks=way, bias_correction=True, target_parameters=target)
        ranks = baselines.ranks_within(view, calibration, spec)
        yield {
            layer: {role: {"form": "low_rank", "rank": rank} for role, rank in roles.items()}
            for layer, roles in ranks.items()
        }


def _pruned(view: ModelView, calibration: Calibration, target: Target) -> Iterator[Plan]:
    """The plans of `baselines.prune`: the largest entries of all matrices, or of every row by the size of its input.

    Where there are biases, each once more with biases that take up the mean of what goes. None where the masks alone
    are too large.
    """
    if targets.room(view.shape, target) <= targets.masks(view.shape):
        return
    for name, score, scope in (("magnitude", "magnitude", "all"), ("row", "input", "row")):
        spec = Prune(method="prune", score=score, scope=scope, target_parameters=target)
        kept = baselines.entries_kept(baselines.pruned(view, calibration, spec))
        for corrected in (False, True) if any(name.startswith("b_") for name in view.read(0)) else (False,):
            form = {"form": "sparse", "score": name, "corrected": corrected}
            yield {
                layer: {role: form | {"kept": entries} for role, entries in roles.items()}
                for layer, roles in kept.items()
            }


SINGLE = {"low_rank": _factored, "sparse": _pruned}
