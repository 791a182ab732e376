"""Gather every variant's figures into one table, a page in Markdown and two plots."""

from pathlib import Path

from stages.core import params, pictures, runtime, tables
from stages.core.artifacts import read_json, replacing, write_json, write_text


def main(
    profile: str, provenance: Path, alignment: Path, windows: Path, sizes: Path, perplexity: Path, recovery: Path,
    latency: Path, samples: Path, summary: Path, variants: Path, search: Path, report: Path, texts: Path, plots: Path,
) -> None:  # fmt: skip
    names = list(params.variants())
    # A folder may still hold the figures of a variant that params.yaml no longer has: read only today's.
    of = lambda folder: {name: read_json(folder / f"{name}.json") for name in names}  # noqa: E731
    figures = tables.summary(of(sizes), of(perplexity), of(latency))
    candidates = tables.window_rows(of(windows))
    write_json(summary, figures)
    with replacing(variants) as draft:
        draft.mkdir()
        for name, row in figures.items():
            write_json(draft / f"{name}.json", row)
    write_text(search, tables.csv(("variant", "window", "perplexity"), candidates))
    write_text(
        report,
        tables.page(
            profile, read_json(provenance), figures, of(windows), of(recovery), read_json(alignment), of(latency)
        ),
    )
    write_text(texts, tables.samples(of(samples)))
    with replacing(plots) as draft:
        draft.mkdir()
        pictures.size_against_perplexity(figures, draft / "perplexity_by_size.png")
        pictures.window_search(of(windows), draft / "window_search.png")


if __name__ == "__main__":
    runtime.entry(main)
