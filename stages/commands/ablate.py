"""Measure every way to share one window: alignment x base x delta untrained, and recoveries of two starts.

Run from the repository's root after `dvc repro`: make ablation WINDOW=2-5 RANK=8; RECOVER=no leaves training out. The
rows before any training are also in files of their own, whose names end in `_untrained`.
Every figure is a perplexity on the head of the validation split: what is chosen from them never saw the test split.
"""

import itertools
from functools import partial
from pathlib import Path
from typing import Any, get_args

from stages.commands.opened import Opened, identity
from stages.core.process import command
from stages.core.process.artifacts import replacing, write_csv, write_json
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings.surgeries import Alignment, Reference
from stages.core.shrinking import ablation

LEAST = 1e-4  # of the excess over the original that a logarithmic axis shows: what lies below it is as good


def main(window: str, rank: str, recover: str, to: Path) -> None:
    import pandas as pd

    if recover not in ("yes", "no"):
        raise UserError(f"RECOVER = {recover}: yes or no is needed")
    first, last = window_of(window)
    if not rank.isdecimal() or int(rank) < 1:
        raise UserError(f"RANK = {rank}: a whole number from 1 is needed")
    study = Opened.here()
    original, sites = study.view, study.section("extract").sites
    if last >= original.depth:
        raise UserError(f"WINDOW = {window}: this model has layers 0 to {original.depth - 1}")
    if int(rank) > (most := min(original.shape.matrices["in"])):
        raise UserError(f"RANK = {rank}: a whole number from 1 to {most} is needed")
    reach = study.section("correlate").reach
    if last - first >= reach:
        raise UserError(f"WINDOW = {window}: correlate.reach = {reach} layers were aligned with each other at most")
    if borders := [border for border in original.borders if first < border <= last]:
        raise UserError(f"WINDOW = {window}: layers of other sizes begin at {borders[0]}")
    group = list(range(first, last + 1))
    calibration, score = study.calibration, study.judge("search", "validation").score
    recover_one = study.recoverer(held_out_by="search")

    def train(view, sharing, spec):
        recover_one(view, sharing, original, spec)
        return score(view)

    watch = partial(progress, what=f"ablate layers {window}")
    reference = score(original)
    found = list(ablation.untrained(original, group, calibration, sites, int(rank), score, watch))
    figures = {"study": identity(study.profile), "original": reference}
    write(found, figures, window, to / f"{window}_rank{rank}_untrained")
    if recover != "no":
        found += ablation.recovered(original, group, calibration, sites, int(rank), train, watch)
        write(found, figures, window, to / f"{window}_rank{rank}")
    print(pd.DataFrame(found).to_string(index=False))


def write(found: list[dict], figures: dict[str, Any], window: str, to: Path) -> None:
    """The rows as CSV, as metrics beside `figures`, and as a picture; the name `to` has no ending."""
    write_csv(to.with_suffix(".csv"), found)
    arms = {"/".join(row[part] for part in (*ablation.START, "recovery")): row["perplexity"] for row in found}
    write_json(to.with_suffix(".json"), figures | arms)
    with replacing(to.with_suffix(".png")) as draft:
        draw(found, figures["original"], window, draft)


def window_of(text: str) -> tuple[int, int]:
    """The first and the last layer of a window written as 2-5. Raises UserError unless it holds two layers or more."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        said = f"WINDOW = {text}" if text else "WINDOW is missing"
        raise UserError(f"{said}: the first and the last of two layers or more are needed, as 2-5")
    return int(first), int(last)


def draw(found: list[dict], original: float, window: str, path: Path) -> None:
    """Every row as a point, how far above the original it is: one row a form or recovery, one colour a way to align."""
    from stages.core.reporting.drawing import COLOURS, logarithmic, plt

    every = itertools.product(get_args(Alignment), get_args(Reference))
    colours = dict(zip(every, COLOURS))  # the same in every picture
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    forms = list(dict.fromkeys(map(form, found)))
    ways = list(dict.fromkeys((row["alignment"], row["reference"]) for row in found))
    for way in ways:
        points = [
            (max(row["perplexity"] / original - 1, LEAST), forms.index(form(row)))
            for row in found
            if way == (row["alignment"], row["reference"])
        ]
        axes.plot(*zip(*points), "o", color=colours[way], alpha=0.8, label=f"{way[0]}, {way[1]}")
    axes.set(
        title=f"Layers {window} share one FFN",
        xlabel="validation perplexity above the original's (share of it, log scale)",
    )
    logarithmic(axes.xaxis)
    axes.set_yticks(range(len(forms)), forms)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="alignment, reference")
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def form(row: dict) -> str:
    """The name of a form with its recovery, one row of the picture."""
    repaired = "" if row["repair"] == "none" else ", repaired"
    recovered = "" if row["recovery"] == "none" else f", then {row['recovery']}"
    return f"{row['base']} + {row['delta']}{repaired}{recovered}"


if __name__ == "__main__":
    command.entry(main)
