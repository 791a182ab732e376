"""Measure every way to store less at several sizes: validation and test perplexity against what a model stores.

Run from the repository's root after `dvc repro`: make curve SIZES=0.9,0.8. RECOVER=0.8 trains those of that size, too,
each at three rates, of which the validation split chooses one. Windows and forms are chosen by the validation split.
"""

from functools import partial
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import statistics
from stages.core.forms import checkpoint, counting
from stages.core.process import command, devices
from stages.core.process.artifacts import replacing, write_csv, write_json
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.shrinking import curve, probes
from stages.core.tasks import choice
from stages.core.training import recovery

RATES = (1.0, 0.3, 0.1)  # times the profile's own


def main(sizes: str, recover: str, to: Path) -> None:
    profile, model = params.load().profile, Path("artifacts/model")
    rules.validate(profile, model)
    shares, trained = _shares("SIZES", sizes), _shares("RECOVER", recover) if recover != "no" else []
    if lost := [share for share in trained if share not in shares]:
        raise UserError(f"RECOVER = {recover}: {lost[0]} is none of SIZES = {sizes}")
    runtime, search, test = (params.section(profile, name) for name in ("runtime", "search", "perplexity"))
    recipe, device = params.section(profile, "finetune"), devices.start(runtime)
    view = ModelView(opening.open_snapshot(model).to(device))
    calibration = statistics.read(Path("artifacts/permutations.npz"), Path("artifacts/moments"), device)
    chooser = choice.by(model, search)
    judge = probes.judge_by(chooser, chooser.held_out(Path("artifacts/text/validation.parquet"), search), device)
    tested = choice.by(model, test).held_out(Path("artifacts/text/test.parquet"), test)

    def measured(changed: ModelView) -> dict[str, float]:
        return {"validation": judge.score(changed), "test": choice.by(model, test).score(changed.model, tested)}

    def row(name: str, changed: ModelView) -> dict:
        stored = counting.count(changed)["parameters"]
        return {"method": name, "stored": stored, "share": stored / view.shape.parameters, **measured(changed)}

    def train(changed: ModelView, sharing, variant) -> dict[str, float]:
        """The figures after recovery at the rate that validation text chooses."""
        task, teacher = choice.by(model, recipe), checkpoint.load(Path("artifacts/control"))[0].to(device)
        rows = task.training(Path("artifacts/text/train.parquet"), recipe)
        held_out = task.held_out(Path("artifacts/text/validation.parquet"), recipe.validation)
        found = []
        for rate in RATES:
            tried, spec = changed.copy(), variant.finetune.model_copy(update={"rate": rate})
            recovery.recover(
                tried, sharing, teacher, task, rows, held_out, recipe, spec, recipe.seeds[0],
                autocast=devices.autocast(device, runtime.precision), watch=iter,
            )  # fmt: skip
            found.append({f"{name}_after": value for name, value in measured(tried).items()} | {"rate": rate})
        return min(found, key=lambda one: one["validation_after"])

    rows = [row("original", view) | {"speed": curve.ORDINARY}]
    watch = partial(progress, what="curve")
    for name, share, changed, sharing in curve.made(view, calibration, shares, judge, watch):
        rows.append(row(name, changed) | {"size": share, "speed": curve.METHODS[name].speed})
        if share in trained:
            rows[-1] |= train(changed, sharing, curve.METHODS[name].variant(share))
        _write(rows, to)
    _show(rows, to)


def _shares(name: str, text: str) -> list[float]:
    """The numbers of a list such as 0.9,0.8. Raises UserError unless all lie between 0 and 1."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"{name} = {text}: shares of the original's parameters are needed, as 0.9,0.8")
    return sorted(set(shares), reverse=True)


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
    """Test perplexity above the original's (log scale) against the share stored, one line a method."""
    from stages.core.reporting.pictures import COLOURS, MARKERS, plt

    original, lines = rows[0]["test"], {}
    for row in rows[1:]:
        lines.setdefault(row["method"], []).append((row["share"], max(row["test"] / original - 1, 1e-5)))
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (name, points) in enumerate(lines.items()):
        dashed = "--" if curve.METHODS[name].speed == curve.SPARSE else "-"
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.plot(*zip(*sorted(points)), dashed, label=name, **style)
    axes.set(
        title="Before recovery; dashed: needs sparse storage",
        xlabel="stored, share of the original",
        ylabel="test perplexity above the original's (share of it)",
        yscale="log",
    )
    axes.grid(which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    command.entry(main)
