"""Tables of published figures: beside those of this study, and of others alone."""

from collections.abc import Callable, Iterable

from stages.core.reporting.published import Source
from stages.core.reporting.study import Study
from stages.core.reporting.tables import NOTHING, Table


def beside(study: Study) -> list[Table]:
    """One narrow table a measure: ours, ours by the research notes' protocol, and what they published."""
    theirs = {name: study.published.seeds.of(name) for name in study.variants}
    known = [name for name in study.variants if theirs[name]]

    def table(title: str, ours: Callable, notes: Callable, key: str, digits: int, columns=("ours", "notes' protocol")):
        cells = {columns[0]: ours, columns[1]: notes, "published": lambda name: getattr(theirs[name], key)}
        if all(notes(name) is None for name in known):  # not measured by it
            del cells[columns[1]]
        rows = [(name, *(_number(cell(name), digits) for cell in cells.values())) for name in known]
        return Table(("variant", *cells), rows, title, narrow=True)

    def of(figures: str, key: str) -> Callable:
        return lambda name: getattr(study, figures)[name].get(key)

    return [
        table(
            "Parameters, millions",
            lambda name: study.sizes[name]["parameters"] / 1e6,
            lambda name: study.sizes[name]["dense_parameters"] / 1e6,
            "parameters_millions",
            2,
            ("stored", "dense"),
        ),
        table(
            "Perplexity after fine-tuning",
            of("perplexity", "after"),
            of("perplexity", "seed_after"),
            "perplexity",
            2,
        ),
        table(
            "Latency, ms",
            of("latency", "decode_ms_per_token"),
            of("latency", "seed_ms"),
            "latency_ms",
            1,
            ("ours (token)", "notes' protocol"),
        ),
        table(
            "Sentiment accuracy",
            of("sentiment", "accuracy"),
            lambda name: None,  # not repeated by the notes' protocol
            "accuracy",
            3,
        ),
        table("ROUGE-1", of("summarization", "rouge1"), of("summarization", "seed_rouge1"), "rouge1", 3),
        table("ROUGE-2", of("summarization", "rouge2"), of("summarization", "seed_rouge2"), "rouge2", 3),
        table("ROUGE-L", of("summarization", "rougeL"), of("summarization", "seed_rougeL"), "rougeL", 3),
    ]


# Column of published figures -> the figure and its digits; a table has those columns for which its source has a value.
PUBLISHED = {
    "millions of parameters": ("parameters_millions", 1),
    "share of parameters": ("parameters_share", 2),
    "perplexity": ("perplexity", 2),
    "accuracy": ("accuracy", 4),
    "images a second": ("images_per_second", 0),
}


def elsewhere(sources: Iterable[Source]) -> list[Table]:
    """Published figures that no variant of ours is beside, a table for each source."""
    found = []
    for source in sources:
        columns = {
            title: (name, digits)
            for title, (name, digits) in PUBLISHED.items()
            if any(getattr(figure, name) is not None for figure in source.figures)
        }
        rows = [
            (figure.name, *(_number(getattr(figure, name), digits) for name, digits in columns.values()))
            for figure in source.figures
        ]
        found.append(Table(("model", *columns), rows, source.title, f"{source.protocol}.", narrow=True))
    return found


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:,.0f}"
