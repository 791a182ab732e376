"""Measure every way to store less at several sizes: validation and test perplexity against what a model stores.

Run from the repository's root after `dvc repro`: make curve SIZES=0.9,0.8. TRAIN=0.8 recovers those of that size, too,
each at four rates, of which the validation split chooses one; SEEDS=0,1,2 then repeats it with these seeds. Windows,
layers and forms are chosen by the validation split, those of a recovered mixture after a recovery. On the CPU every
core measures methods of its own, as far as memory allows. What is found stays in artifacts/curve: the same command goes
on from there where it was stopped, and one for other sizes begins there.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stages.commands import opened
from stages.commands.curve_picture import draw
from stages.commands.kept import FOLDER, Kept
from stages.commands.points import CONTROL, Measuring, longest_window
from stages.core.architecture.shape import Shape, of_folder
from stages.core.process import command, devices
from stages.core.process.artifacts import replacing, write_csv, write_json
from stages.core.process.errors import UserError
from stages.core.process.guard import ctrl_c_held_back, end_with_parent
from stages.core.process.progress import progress
from stages.core.running import estimates
from stages.core.settings import params
from stages.core.settings.section import Seed
from stages.core.shrinking import curve

SEEDS = TypeAdapter(Seed).json_schema()["exclusiveMaximum"]  # no seed is as large


def main(sizes: str, train: str, seeds: str, to: Path) -> None:
    shares = _shares("SIZES", sizes)
    trained = _shares("TRAIN", train, " or no") if train != "no" else []
    if lost := [share for share in trained if share not in shares]:
        raise UserError(f"TRAIN = {train}: {lost[0]} is none of SIZES = {sizes}")
    repeats = _seeds(seeds)
    if len(repeats) > 1 and not trained:
        raise UserError(f"SEEDS = {seeds}: they are of recoveries; TRAIN says which sizes are recovered")
    profile = opened.checked((*opened.READ, "control") if trained else opened.READ)
    known = of_folder(opened.MODEL)
    plans = _plans(shares, known, longest_window(profile, known))
    seeds_of = {share: repeats if share in trained else None for share in shares}
    originals, rows = [], {}
    workers = min(len(plans), _workers(profile, known, bool(trained)))
    kept, study = Kept.here(profile, CONTROL), opened.identity(profile)
    if kept.folder.exists():
        there = sum(kept.find("point", *plan, seeds_of[plan[1]]) is not None for plan in plans)
        print(f"{there} of {len(plans)} rows are there from an earlier run, and it goes on from {kept.folder}")
    measured = _measured(plans, seeds_of, repeats if trained else None, workers, kept)
    for row in progress(measured, "curve", total=len(plans) + (2 if trained else 1)):
        if "size" in row:
            rows[row["method"], row["size"]] = row
        else:
            originals.append(row)
        if originals and rows:
            _write(_excesses([*originals, *(rows[plan] for plan in plans if plan in rows)]), study, to)
    _show(_excesses([*originals, *(rows[plan] for plan in plans)]), to)


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
    return max(1, min(devices.cores() // runtime.threads, fitting))


def _plans(shares: list[float], shape: Shape, longest: int) -> list[tuple[str, float]]:
    """(method, share) of all that fits. Raises UserError where no method can store a share."""
    found = curve.plans(shares, shape, longest)
    if missing := set(shares) - {share for _, share in found}:
        reached = [share / 100 for share in range(1, 100) if curve.plans([share / 100], shape, longest)]
        raise UserError(
            f"SIZES = {min(missing):g}: no method can store so little of this model; {reached[0]} to {reached[-1]} are "
            "allowed"
        )
    return found


def _measured(
    plans: list[tuple[str, float]], seeds: dict, original: list[int] | None, workers: int, kept: Kept
) -> Iterator[dict]:
    """The rows of the original and of all plans as they are done, by one process or several.

    seeds: share -> those of its recovery, None without one. original: those of the original's recovery. kept: what
    earlier runs have found; the rest is added. What all mixtures need to know is found once, and a search of a share
    serves all its mixtures.
    """
    rows = {plan: kept.find("point", *plan, seeds[plan[1]]) for plan in plans}
    yield from filter(None, rows.values())
    originals = kept.find("originals", original)
    yield from originals or ()
    alone, mixed = [], {}
    for name, share in (plan for plan, row in rows.items() if row is None):
        if curve.in_mixture(name):
            mixed.setdefault(share, []).append(name)
        else:
            alone.append((name, share))
    searched = {share: kept.find("tried", share) for share in mixed}
    # The smallest first: its search takes longest.
    unsearched = sorted(share for share, found in searched.items() if found is None)
    needed = {"probe": (), "survey": (unsearched[0],)} if unsearched else {}
    known = {what: kept.find(what, *asked) for what, asked in needed.items()}
    with _calls(workers) as (submit, ended):
        jobs: dict[Any, tuple] = {}

        def ask(what: str, *asked: Any, given: tuple = ()) -> None:
            jobs[submit(what, *asked, *given)] = (what, *asked)

        def ask_searches() -> None:
            if None not in known.values():
                for share in unsearched:
                    ask("tried", share, given=tuple(known.values()))

        def ask_mixtures(share: float) -> None:
            for name in mixed[share]:
                ask("point", name, share, seeds[share], given=(curve.kinds(searched[share], name),))

        if originals is None:
            ask("originals", original)
        for what, asked in needed.items():
            if known[what] is None:
                ask(what, *asked)
        for name, share in alone:
            ask("point", name, share, seeds[share])
        for share in mixed.keys() - {*unsearched}:
            ask_mixtures(share)
        ask_searches()
        while jobs:
            for job, found in ended(jobs):
                what, *asked = jobs.pop(job)
                kept.keep(found, what, *asked)
                if what in known:
                    known[what] = found
                    ask_searches()
                elif what == "tried":
                    searched[asked[0]] = found
                    ask_mixtures(asked[0])
                else:
                    yield from found if what == "originals" else [found]


@contextmanager
def _calls(workers: int) -> Iterator[tuple[Callable, Callable]]:
    """What asks for a call of a method of `Measuring`, and what waits for some of those asked for: (call, result)."""
    if workers < 2:

        def first(jobs: Iterable[Callable]) -> Iterator[tuple[Callable, Any]]:
            job = next(iter(jobs))
            yield job, job()

        yield partial(partial, _do), first
        return
    # Fresh processes: a copy of this one would hang where torch has started threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:

        def done(jobs: Iterable[Future]) -> Iterator[tuple[Future, Any]]:
            # What has failed comes last: all else that is done is kept.
            for job in sorted(wait(jobs, return_when=FIRST_COMPLETED).done, key=lambda job: bool(job.exception())):
                yield job, job.result()

        def submit(*asked: Any) -> Future:
            with ctrl_c_held_back():  # a call may start a process
                return pool.submit(_do, *asked)

        try:
            yield submit, done
        except BrokenProcessPool as error:
            raise UserError(
                "a process that measured was ended from outside, perhaps for want of memory; the same command goes on "
                f"from what is in {FOLDER}"
            ) from error
        except BaseException:
            # Nobody waits for the others: they may have hours to go.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.terminate()
            raise


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
            f"{name} = {text}: different shares of the original's parameters, each between 0 and 1, are "
            f"needed, as 0.9,0.8{otherwise}"
        )
    return sorted(shares, reverse=True)


def _seeds(text: str) -> list[int]:
    """The whole numbers of a list such as 0,1,2. Raises UserError unless all are, and no two are the same."""
    parts = text.split(",")
    known = [int(part) for part in parts if part.isdecimal() and int(part) < SEEDS]
    if len(set(known)) < len(parts):
        raise UserError(f"SEEDS = {text}: different whole numbers from 0 to {SEEDS - 1} are needed, as 0,1,2")
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


def _write(rows: list[dict], study: dict[str, str], to: Path) -> None:
    """The table so far, so that a run that ends early leaves what it has measured. study: what it is of."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(to / "curve.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    figures = {f"{row['method']}/{row.get('size', 1.0)}": row["test"] for row in rows}
    write_json(to / "curve.json", {"study": study} | figures)
    with replacing(to / "curve.png") as draft:
        draw(rows, draft)


def _show(rows: list[dict], to: Path) -> None:
    import pandas as pd

    print(pd.DataFrame(rows).to_string(index=False, float_format="%.4f", na_rep=""))
    print(f"\n{to / 'curve.csv'}, {to / 'curve.png'}")


if __name__ == "__main__":
    command.entry(main)
