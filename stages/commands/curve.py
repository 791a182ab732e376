"""Measure every way to store less at several sizes: validation and test perplexity against what a model stores.

Run from the repository's root after `dvc repro`: make curve SIZES=0.9,0.8. TRAIN=0.8 recovers those of that size, too,
each at four rates, of which the validation split chooses one; SEEDS=0,1,2 then repeats it with these seeds. Windows,
layers and forms are chosen by the validation split. On the CPU every core measures methods of its own, as far as memory
allows.
"""

import os
import statistics
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stages.commands import opened
from stages.core.architecture.shape import Shape, of_folder
from stages.core.architecture.view import ModelView
from stages.core.forms import checkpoint, counting
from stages.core.forms.structure import Sharing
from stages.core.process import command, devices
from stages.core.process.artifacts import replacing, write_csv, write_json
from stages.core.process.errors import UserError
from stages.core.process.guard import end_with_parent
from stages.core.process.progress import progress
from stages.core.running import estimates
from stages.core.settings import params
from stages.core.settings.section import Seed
from stages.core.settings.variants import Distill, Recovery
from stages.core.shrinking import curve
from stages.core.shrinking.arranging import Surveyed
from stages.core.shrinking.mixing import Tried
from stages.core.shrinking.probes import Probed
from stages.core.training.files import Outputs

RATES = (3.0, 1.0, 0.3, 0.1)  # times the profile's own
SEEDS = TypeAdapter(Seed).json_schema()["exclusiveMaximum"]  # no seed is as large
HIDDEN = 20.0  # weight of the control's hidden states
CONTROL = Outputs.within(Path("artifacts/control")).checkpoint
MOMENTS = 4e9  # bytes of moments that stay in memory between methods
MORE = ("#5b5f97", "#1b1b1e", "#7fb069", "#b08ea2")  # colours, as there are more methods than the report has
LEAST = 1e-3  # of the excess over the original that the picture shows: what is below it is as good


def main(sizes: str, train: str, seeds: str, to: Path) -> None:
    shares = _shares("SIZES", sizes)
    trained = _shares("TRAIN", train, " or no") if train != "no" else []
    if lost := [share for share in trained if share not in shares]:
        raise UserError(f"TRAIN = {train}: {lost[0]} is none of SIZES = {sizes}")
    repeats = _seeds(seeds)
    if len(repeats) > 1 and not trained:
        raise UserError(f"SEEDS = {seeds}: they are of recoveries; TRAIN says which sizes are recovered")
    profile, known = opened.checked(), of_folder(opened.MODEL)
    plans = _plans(shares, known, _longest(profile, known))
    seeds_of = {share: repeats if share in trained else None for share in shares}
    originals, rows = [], {}
    workers = min(len(plans), _workers(profile, known, bool(trained)))
    measured = _measured(plans, seeds_of, repeats if trained else None, workers)
    for row in progress(measured, "curve", total=len(plans) + (2 if trained else 1)):
        if "size" in row:
            rows[row["method"], row["size"]] = row
        else:
            originals.append(row)
        if originals and rows:
            _write(_excesses([*originals, *(rows[plan] for plan in plans if plan in rows)]), to)
    _show(_excesses([*originals, *(rows[plan] for plan in plans)]), to)


def _longest(profile: str, shape: Shape) -> int:
    """The most layers of a window: as many as a stage of the model has, and as were aligned with each other."""
    return min(shape.deepest.depth, params.section(profile, "correlate").reach)


def _workers(profile: str, shape: Shape, trained: bool) -> int:
    """How many processes measure methods of their own: as many as cores and memory allow; one on a GPU."""
    import psutil

    runtime = params.section(profile, "runtime")
    if devices.start(runtime).type != "cpu" or not runtime.threads:
        return 1
    found = params.load()
    costs = estimates.estimate(found.profiles[profile], found.studied(profile), shape)
    need = max(costs[stage].memory for stage in (("search", "finetune") if trained else ("search",)))
    fitting = int(psutil.virtual_memory().available / need)
    return max(1, min(len(os.sched_getaffinity(0)) // runtime.threads, fitting))


class Measuring:
    """The study of this repository, with what measures a model of it."""

    def __init__(self):
        self.study = opened.Opened.here(MOMENTS)
        self.judge, self.test = self.study.judge("search", "validation"), self.study.judge("perplexity", "test")
        self.longest = _longest(self.study.profile, self.study.view.shape)
        self.known = self.study.view, self.study.calibration, self.judge

    def original(self) -> dict:
        """The row of the original."""
        return self.row("original", self.study.view) | {"speed": curve.ORDINARY}

    def probe(self) -> Probed:
        """What each matrix alone costs in each form."""
        return curve.probe(*self.known)

    def survey(self, smallest: float) -> Surveyed:
        """What arrangements of layers cost, for all shares down to the smallest."""
        return curve.survey(*self.known, smallest, self.longest)

    def tried(self, share: float, probed: Probed, surveyed: Surveyed) -> list[Tried]:
        """What the search of a mixture tries at a share of the original's parameters."""
        return curve.tried(share, *self.known, probed, surveyed, self.longest)

    def point(self, name: str, share: float, seeds: list[int] | None, chosen: Tried | None = None) -> dict:
        """The row of a method at a share of the original's parameters.

        seeds: of its recovery, None without one. chosen: what it is, where the search of a mixture has found it.
        """
        rows = ((self.row(name, made.view), made) for made in curve.make(name, share, *self.known[:2], chosen))
        row, (changed, sharing, kept) = min(rows, key=lambda pair: pair[0]["validation"])
        found = row | {"size": share, "speed": curve.METHODS[name].speed}
        if seeds is None:
            return found
        recipes = arms(curve.METHODS[name].variant(share).finetune, kept)
        return found | self.trained(changed, sharing, recipes, seeds, kept)

    def row(self, name: str, changed: ModelView) -> dict:
        """What a model stores and its perplexities."""
        stored = counting.count(changed)["parameters"]
        share = stored / self.study.view.shape.parameters
        return {"method": name, "stored": stored, "share": share} | self.measured(changed)

    def measured(self, changed: ModelView) -> dict[str, float]:
        """The perplexities of a model."""
        return {"validation": self.judge.score(changed), "test": self.test.score(changed)}

    def originals(self, seeds: list[int] | None) -> list[dict]:
        """The original; with seeds also trained as stage `control` does, and with the control as teacher."""
        if seeds is None:
            return [self.original()]
        control = checkpoint.load(CONTROL)[0]
        plain = {f"{split}_after": value for split, value in self.measured(control).items()}
        recipes = arms(Recovery(teacher="control", distill=Distill(logits=0.5, hidden=HIDDEN)))
        distilled = self.trained(self.study.view, Sharing(), recipes, seeds)
        return [self.original() | plain, self.original() | {"method": "original_distilled"} | distilled]

    def trained(self, changed: ModelView, sharing, recipes: list[Recovery], seeds: list[int], kept=None) -> dict:
        """The perplexities after recovery by the recipe that validation text chooses with the first seed.

        They are means over the seeds; `spread_after` is the standard deviation on the test split. kept: the original's
        layers that the model has, None for all.
        """
        teacher, recover = checkpoint.load(CONTROL)[0].to(self.study.device), self.study.recoverer()

        def ends(spec: Recovery, seed: int) -> dict[str, float]:
            tried = changed.copy()
            recover(tried, sharing, teacher, spec, seed, kept)
            return self.measured(tried)

        found = [ends(spec, seeds[0]) for spec in recipes]
        best = min(range(len(recipes)), key=lambda number: found[number]["validation"])
        every = [found[best], *(ends(recipes[best], seed) for seed in seeds[1:])]
        means = {f"{split}_after": statistics.mean(one[split] for one in every) for split in every[0]}
        spread = {"spread_after": statistics.stdev(one["test"] for one in every)} if len(every) > 1 else {}
        chosen = {"rate": recipes[best].rate, "hidden": recipes[best].distill.hidden, "seeds": len(every)}
        return means | spread | chosen


def arms(spec: Recovery, kept: list[int] | None = None) -> list[Recovery]:
    """The recipes that are tried: `spec` at every rate, with hidden states; where layers are gone, also without."""
    weights = [HIDDEN] if kept is None else [0.0, HIDDEN]
    return [
        spec.model_copy(update={"rate": rate, "distill": spec.distill.model_copy(update={"hidden": hidden})})
        for hidden in weights
        for rate in RATES
    ]


def _plans(shares: list[float], shape: Shape, longest: int) -> list[tuple[str, float]]:
    """(method, share) of all that fits. Raises UserError where no method can store a share."""
    found = curve.plans(shares, shape, longest)
    if missing := set(shares) - {share for _, share in found}:
        reached = [share / 100 for share in range(1, 100) if curve.plans([share / 100], shape, longest)]
        raise UserError(
            f"SIZES: no method can store {min(missing):g} of this model; {reached[0]} to {reached[-1]} are allowed"
        )
    return found


def _measured(plans: list[tuple[str, float]], seeds: dict, original: list[int] | None, workers: int) -> Iterator[dict]:
    """The rows of the original and of all plans as they are done, by one process or several.

    seeds: share -> those of its recovery, None without one. original: those of the original's recovery. What all
    mixtures need to know is found once, and a search of a share serves all its mixtures.
    """
    alone = [plan for plan in plans if not curve.in_mixture(plan[0])]
    mixed: dict[float, list[str]] = {}
    for name, share in plans:
        if curve.in_mixture(name):
            mixed.setdefault(share, []).append(name)
    if workers < 2:
        measuring = _own()
        yield from measuring.originals(original)
        yield from (measuring.point(*plan, seeds[plan[1]]) for plan in alone)
        known = (measuring.probe(), measuring.survey(min(mixed))) if mixed else ()
        for share, names in mixed.items():
            found = measuring.tried(share, *known)
            yield from (measuring.point(name, share, seeds[share], curve.best_of(found, name)) for name in names)
        return
    # Fresh processes: a copy of this one would hang where torch has started threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        first = pool.submit(_do, "originals", original)
        known = [pool.submit(_do, "probe"), pool.submit(_do, "survey", min(mixed))] if mixed else []
        searches: dict[Future, float] = {}
        waiting = {first, *known, *(pool.submit(_do, "point", *plan, seeds[plan[1]]) for plan in alone)}
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in ended:
                found = each.result()
                if each in searches:
                    share = searches[each]
                    chosen = {name: curve.best_of(found, name) for name in mixed[share]}
                    waiting |= {pool.submit(_do, "point", name, share, seeds[share], chosen[name]) for name in chosen}
                elif each is first:
                    yield from found
                elif each not in known:
                    yield found
            if known and not searches and all(each.done() for each in known):
                found = [each.result() for each in known]
                # The smallest first: it takes longest.
                searches = {pool.submit(_do, "tried", share, *found): share for share in sorted(mixed)}
                waiting |= searches.keys()


@cache
def _own() -> Measuring:
    """The study as this process has opened it."""
    return Measuring()


def _do(what: str, *arguments: Any) -> Any:
    return getattr(_own(), what)(*arguments)


def _shares(name: str, text: str, otherwise: str = "") -> list[float]:
    """The numbers of a list such as 0.9,0.8. Raises UserError unless all lie between 0 and 1.

    otherwise: what else is allowed, for the message.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares) or len(set(shares)) < len(shares):
        raise UserError(
            f"{name} = {text or 'nothing'}: different shares of the original's parameters, each between 0 and 1, are "
            f"needed, as 0.9,0.8{otherwise}"
        )
    return sorted(shares, reverse=True)


def _seeds(text: str) -> list[int]:
    """The whole numbers of a list such as 0,1,2. Raises UserError unless all are, and no two are the same."""
    parts = text.split(",")
    known = [int(part) for part in parts if part.isdecimal() and int(part) < SEEDS]
    if len(set(known)) < len(parts):
        raise UserError(
            f"SEEDS = {text or 'nothing'}: different whole numbers from 0 to {SEEDS - 1} are needed, as 0,1,2"
        )
    return known


def _excesses(rows: list[dict]) -> list[dict]:
    """The rows with how far test perplexity lies above the original's (a share of it), and the ratio to the control."""
    control = rows[0].get("test_after")
    return [
        row
        | {"excess": row["test"] / rows[0]["test"] - 1}
        | ({"to_control": row["test_after"] / control} if "test_after" in row else {})
        for row in rows
    ]


def _write(rows: list[dict], to: Path) -> None:
    """The table so far, so that a run that ends early leaves what it has measured."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(to / "curve.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    write_json(to / "curve.json", {f"{r['method']}/{r.get('size', 1.0)}": r["test"] for r in rows})
    with replacing(to / "curve.png") as draft:
        draw(rows, draft)


def _show(rows: list[dict], to: Path) -> None:
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False, float_format="%.4f", na_rep=""))
    print(f"\n{to / 'curve.csv'}, {to / 'curve.png'}")


def draw(rows: list[dict], path: Path) -> None:
    """Test perplexity above the original's (log scale) against the share stored, a named line a method."""
    from stages.core.reporting.pictures import COLOURS, MARKERS, plt

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in (row for row in rows if row["method"] in curve.METHODS):
        lines.setdefault(row["method"], []).append((row["share"], max(row["excess"], LEAST)))
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    colours, ends = COLOURS + MORE, {}
    for number, (name, points) in enumerate(lines.items()):
        dashes = {curve.SPARSE: "--", curve.FEWER: ":"}.get(curve.METHODS[name].speed, "-")
        style = {"color": colours[number], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(*zip(*sorted(points)), dashes, **style)
        ends[name] = (*min(points), style["color"])
    axes.set(
        title="Before recovery. Solid: ordinary matrices; dotted: fewer layers; dashed: needs sparse storage",
        xlabel="stored, share of the original",
        ylabel=f"test perplexity above the original's, share of it (at least {LEAST:g})",
        yscale="log",
    )
    axes.grid(which="major")
    left = min(share for points in lines.values() for share, _ in points)
    height = axes.get_ylim()[1] / axes.get_ylim()[0]
    for name, y in _apart({name: value for name, (_, value, _) in ends.items()}, height ** (1 / 28)).items():
        share, value, colour = ends[name]
        link = {"arrowstyle": "-", "color": colour, "alpha": 0.4, "shrinkA": 0, "shrinkB": 2}
        place = {"xytext": (left - 0.012, y), "ha": "right", "va": "center", "arrowprops": link}
        axes.annotate(name, (share, value), color=colour, **place)
    axes.set_xlim(left=left - 0.14)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def _apart(heights: dict[str, float], least: float) -> dict[str, float]:
    """Heights of labels on a logarithmic axis in the same order, moved up so that neighbours differ by a factor."""
    found: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        found[name] = max(height, least * max(found.values(), default=0.0))
    return found


if __name__ == "__main__":
    command.entry(main)
