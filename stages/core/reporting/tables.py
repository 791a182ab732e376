"""The study's figures as tables of text, for whatever page shows them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.reporting.study import Study, alone, correlation_rows, layout

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Rows under a header, all text; the first column names the row. `title` and `note` may hold inline Markdown.

    folded: a reader asks for it first, where a page can fold; narrow: others may stand beside it.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    title: str = ""
    note: str = ""
    folded: bool = False
    narrow: bool = False


def perplexity(value: float) -> str:
    """Four digits or so, whatever the size."""
    if value < 100:
        return f"{value:.3f}"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


Column = tuple[str, Callable[[str], str]]  # a header, and a variant's cell


def _table(study: Study, columns: list[Column], *rest: str, **options: bool) -> Table:
    """A row for each variant."""
    rows = [(name, *(cell(name) for _, cell in columns)) for name in study.variants]
    return Table(("variant", *(header for header, _ in columns)), rows, *rest, **options)


def headline(study: Study) -> Table:
    """What every variant costs and keeps, in few columns."""

    def after(name: str) -> str:
        found = study.perplexity[name]
        return perplexity(found["after"]) + _spread(found, "after")

    columns: list[Column] = [
        ("stored", lambda name: f"{study.sizes[name]['parameters']:,}"),
        ("ratio", lambda name: f"{study.sizes[name]['parameter_ratio']:.3f}"),
        ("ppl before", lambda name: perplexity(study.perplexity[name]["before"])),
        ("ppl after", after),
        ("to control (95%)", lambda name: _to_control(study, name)),
    ]
    if study.has("perplexity", "other_after"):
        columns += [
            (f"other ppl {when}", lambda name, when=when: perplexity(study.perplexity[name][f"other_{when}"]))
            for when in ("before", "after")
        ]
    if study.has("perplexity", "accuracy_after"):
        columns.append(("accuracy (95%)", lambda name: _accuracy(study.perplexity[name], "_after")))
    if study.has("sentiment", "accuracy"):
        columns.append(("accuracy (95%)", lambda name: _accuracy(study.sentiment[name])))
    if study.has("summarization", "rougeL"):
        columns.append(("ROUGE-L", lambda name: f"{study.summarization[name]['rougeL']:.3f}"))
    return _table(study, [*columns, ("speed-up", lambda name: f"{study.latency[name]['speedup']:.2f}")])


def _to_control(study: Study, name: str) -> str:
    """A ratio to the control, which is 1 for itself, with its interval."""
    ratio, bounds = study.to_control(name), study.bounds(name)
    # Near 1 the fourth digit is what tells two variants apart.
    shown, *ends = (f"{value:.4f}" if ratio < 1.1 else perplexity(value) for value in (ratio, *(bounds or ())))
    return f"{shown} ({'–'.join(ends)})" if ends and name != "original" else shown


def _spread(found: Mapping[str, Any], name: str) -> str:
    """The standard deviation over seeds behind a mean; one seed has none."""
    return f" ± {found[f'{name}_spread']:.3f}" if found["seeds"] > 1 else ""


def _accuracy(found: Mapping[str, Any], when: str = "") -> str:
    """An accuracy with its interval."""
    low, high = found[f"accuracy_low{when}"], found[f"accuracy_high{when}"]
    spread = _spread(found, f"accuracy{when}") if when else ""
    return f"{found[f'accuracy{when}']:.3f}{spread} ({low:.3f}–{high:.3f})"


def storage(study: Study) -> Table:
    """Parameters by every way to count them, and where the time goes."""
    columns: list[Column] = [
        ("stored", lambda name: f"{study.sizes[name]['parameters']:,}"),
        ("dense", lambda name: f"{study.sizes[name]['dense_parameters']:,}"),
        ("FFN stored", lambda name: f"{study.sizes[name]['ffn_parameters']:,}"),
        ("MB", lambda name: f"{study.sizes[name]['checkpoint_mb']:.2f}"),
    ]
    if study.has("latency", "prefill_ms"):
        # Each variant is timed in turns with the original, at another moment than the next variant.
        columns += [
            (f"{title}, beside the original's", lambda name, key=key: _beside(study.latency[name], key))
            for title, key in (("prefill ms", "prefill_ms"), ("decode ms/token", "decode_ms_per_token"))
        ]
    for key in study.latency["original"]:
        if key.startswith("images_per_second_"):
            size = key.removeprefix("images_per_second_")
            columns.append((f"images/s, {size} at a time", lambda name, key=key: f"{study.latency[name][key]:,.0f}"))
    return _table(study, columns, "Parameters by every count, and where the time goes", folded=True)


def _beside(found: Mapping[str, Any], key: str) -> str:
    """A time and the original's in the same turns."""
    return f"{found[key]:.2f} / {found[f'original_{key}']:.2f}"


def accuracy(study: Study) -> Table:
    """Accuracy of an image classifier before and after fine-tuning, with its interval, macro F1 and top 5."""
    found = study.perplexity
    return _table(
        study,
        [
            ("before", lambda name: f"{found[name]['accuracy_before']:.3f}"),
            ("after (95%)", lambda name: _accuracy(found[name], "_after")),
            ("macro F1", lambda name: f"{found[name]['macro_f1_after']:.3f}"),
            ("among the 5 best", lambda name: f"{found[name]['top5_after']:.3f}"),
        ],
    )


def sentiment(study: Study) -> Table:
    """Accuracy with its interval, macro F1, the majority's share, and the mean and spread over random seeds."""
    rows = [
        (
            name,
            f"{task['accuracy']:.3f}",
            f"{task['accuracy_low']:.3f}–{task['accuracy_high']:.3f}",
            f"{task['macro_f1']:.3f}",
            f"{task['majority']:.3f}",
            f"{task['accuracy_mean']:.3f}{_spread(task, 'accuracy')} ({task['seeds']})",
        )
        for name, task in study.sentiment.items()
    ]
    return Table(("variant", "accuracy", "95% interval", "macro F1", "majority class", "over seeds"), rows)


def summarization(study: Study) -> Table:
    """ROUGE of every variant's continuations beside that of each article's first three sentences."""
    measures = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    first = study.summarization["original"]
    rows = [("first three sentences", *(f"{first[f'lead3_{measure}']:.3f}" for measure in measures))]
    rows += [(name, *(f"{task[measure]:.3f}" for measure in measures)) for name, task in study.summarization.items()]
    return Table(("variant", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), rows)


def recovery(study: Study) -> Table:
    """Validation perplexity before a training and where it was best."""
    rows = [
        (
            name,
            perplexity(recovery["validation_before"]),
            perplexity(recovery["validation_after"]),
            f"{recovery[f'kept_{study.unit}']:,}",
        )
        for name, recovery in study.recovery.items()
    ]
    return Table(("variant", "validation before", "validation after", f"kept after {study.unit}"), rows)


def groups(study: Study) -> Table:
    """The windows of each variant that has some."""
    rows = [
        (name, ", ".join(f"{group[0]}–{group[-1]}" for group in found["groups"]))
        for name, found in study.windows.items()
        if found["groups"]
    ]
    return Table(("variant", "windows, layers from 0"), rows, narrow=True)


def searches(study: Study) -> list[Table]:
    """For each variant that searched, every window it scored."""
    tables = []
    for name, found in study.windows.items():
        if not found["candidates"]:
            continue
        chosen = [[group[0], group[-1]] for group in found["groups"]], "ranks" in found
        rows = [
            (
                layout(candidate["windows"])
                + (" (chosen)" if (candidate["windows"], "budget" in candidate) == chosen else ""),
                perplexity(candidate["perplexity"]),
                perplexity(candidate["perplexity"] / found["original_perplexity"]),
            )
            for candidate in found["candidates"]
        ]
        single = len(alone(found))
        sets = f" and {len(rows) - single} sets of them" if single < len(rows) else ""
        title = (
            f"`{name}`: {single} windows{sets} on {found[study.unit]:,} validation {study.unit}, "
            f"where the original has {perplexity(found['original_perplexity'])}"
        )
        tables.append(Table(("windows, layers from 0", "perplexity", "to the original"), rows, title, folded=True))
    return tables


def neighbours(study: Study) -> list[Table]:
    """Correlation of neurons in neighbouring layers, a table for each site."""
    header, tables = ("layers, from 0", "matched", "above chance", "as numbered"), []
    for site, found in study.alignment["sites"].items():
        rows = [
            (f"{row['first']}–{row['second']}", *(f"{row[key.replace(' ', '_')]:.3f}" for key in header[1:]))
            for row in correlation_rows(study)
            if row["site"] == site and row["second"] == row["first"] + 1
        ]
        silent = sum(found["dead_neurons"].values())
        title = f"Neighbouring layers by `{site}` (neurons that never vary: {silent})"
        tables.append(Table(header, rows, title, folded=True))
    return tables


def environments(study: Study) -> Table:
    """Which figures were taken where: device, precision, threads and versions."""
    taken: dict[tuple, dict[str, list[str]]] = {}
    for stage in ("recovery", "perplexity", "latency", "sentiment", "summarization"):
        for name, figures in getattr(study, stage).items():
            if not figures:
                continue
            place = tuple(figures["environment"].items())
            taken.setdefault(place, {}).setdefault(stage, []).append(name)
    keys = list(dict.fromkeys(key for place in taken for key, _ in place))
    rows = [
        (
            "; ".join(
                stage if len(names) == len(study.variants) else f"{stage} of {', '.join(names)}"
                for stage, names in stages.items()
            ),
            *(str(dict(place).get(key, NOTHING)) for key in keys),
        )
        for place, stages in taken.items()
    ]
    return Table(("measured", *keys), rows)
