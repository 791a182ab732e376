"""Gather every variant's figures into summaries, tables to plot, drawings, and pages in Markdown and HTML."""

from pathlib import Path

from stages.core.process import command
from stages.core.process.artifacts import read_csv, read_json, replacing, write_csv, write_json, write_text
from stages.core.reporting import answers, chapters, drawing, facts, page, paired, pictures, published, study
from stages.core.settings import params


def main(
    profile: str, provenance: Path, overlap: Path, calibration: Path, alignment: Path, windows: Path, sizes: Path,
    recovery: Path, training: Path, perplexity: Path, losses: Path, latency: Path, sentiment: Path, summarization: Path,
    samples: Path, tokens: Path, literature: Path, templates: Path, summary: Path, variants: Path, points: Path,
    plots: Path, report: Path, texts: Path, html: Path,
) -> None:  # fmt: skip
    names = list(params.variants(profile))
    for folder in (windows, sizes, recovery, training, perplexity, losses, latency, sentiment, summarization, samples):
        forget_others(folder, names)

    def of(folder):
        return {name: read_json(folder / f"{name}.json") for name in names}

    said, perplexities, lost = of(samples), of(perplexity), paired.read(losses, names)
    paired.refuse_others(lost, perplexities)
    images, labels = answers.read(tokens, answers.shown(said))
    found = study.Study(
        profile=profile,
        provenance=read_json(provenance),
        overlap=read_json(overlap),
        calibration=read_json(calibration),
        alignment=read_json(alignment),
        windows=of(windows),
        sizes=of(sizes),
        recovery=of(recovery),
        training={name: read_csv(training / f"{name}.csv") for name in names},
        perplexity=perplexities,
        margins=paired.margins(lost),
        untold=paired.untold(lost),
        latency=of(latency),
        sentiment=of(sentiment),
        summarization=of(summarization),
        samples=said,
        images=images,
        label_names=labels,
        published=published.read(literature),
    )
    figures = study.summary(found)
    write_json(summary, figures)
    with replacing(variants) as draft:
        draft.mkdir()
        for name, row in figures.items():
            write_json(draft / f"{name}.json", row)
    with replacing(points) as draft:
        draft.mkdir()
        for kind in ("size", "speed", "window", "correlation", "training", "validation"):
            write_csv(draft / f"{kind}.csv", getattr(study, f"{kind}_rows")(found))
    draw = pictures.drawings(found)
    if found.images:
        draw["answers"] = lambda: answers.figure(found)
    with replacing(plots) as draft:
        draft.mkdir()
        for name, picture in draw.items():
            drawing.png(picture(), draft / f"{name}.png")
    content = {
        "title": "What sharing feed-forward layers costs",
        "study": found,
        "model": chapters.model(found),
        "facts": facts.facts(found),
        "chapters": chapters.chapters(found),
        "prompts": list(dict.fromkeys(found.prompts)),
        "drawings": {name: drawing.svg(picture(), name) for name, picture in draw.items()},
    }
    for path, template in ((report, "report.md.j2"), (texts, "samples.md.j2"), (html, "report.html.j2")):
        write_text(path, page.render(templates, template, **content))


def forget_others(folder: Path, names: list[str]) -> None:
    """Remove the figures of variants that params.yaml no longer has; anything else in the folder stays.

    They are no output of any stage, so no clone will have them, but DVC would compare the whole folder.
    """
    for pattern in ("[!.]*.json", "[!.]*.csv", "[!.]*.parquet"):
        for path in folder.glob(pattern):
            if path.stem not in names:
                path.unlink()


if __name__ == "__main__":
    command.entry(main)
