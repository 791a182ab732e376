"""The study's figures as tables: one row a variant, plain numbers, Markdown for people."""

from collections.abc import Iterable, Mapping
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]


def summary(sizes: Figures, perplexity: Figures, latency: Figures) -> dict[str, dict[str, Any]]:
    """Variant -> its size, perplexity before and after fine-tuning, and latency; the content of summary.json."""
    return {
        name: {
            **sizes[name],
            "perplexity": {key: perplexity[name][key] for key in ("before", "after")},
            "latency": {key: latency[name][key] for key in ("prefill_ms", "decode_ms_per_token", "speedup")},
        }
        for name in sizes
    }


def window_rows(windows: Figures) -> list[tuple[str, str, float]]:
    """(variant, window, perplexity) of every window that a search scored."""
    return [
        (name, layout(candidate["windows"]), candidate["perplexity"])
        for name, found in windows.items()
        for candidate in found["candidates"]
    ]


def layout(windows: Iterable[Iterable[int]]) -> str:
    """Windows as people write them: 1-4+7-10."""
    return "+".join(f"{first}-{last}" for first, last in windows)


def csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Comma-separated text; no field here holds a comma."""
    return "".join(",".join(map(str, row)) + "\n" for row in [header, *rows])


def markdown(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page(
    profile: str,
    provenance: Mapping[str, Any],
    figures: Figures,
    windows: Figures,
    recovery: Figures,
    alignment: Mapping[str, Any],
    latency: Figures,
) -> str:
    """report.md: what was studied, the table, the window search, and how far neurons of neighbours agree."""
    model = provenance["gguf_file"] or provenance["model"]
    revision = f", revision `{provenance['resolved_revision']}`" if provenance["resolved_revision"] else ""
    parts = [
        "# What sharing feed-forward layers costs",
        f"Profile `{profile}`: `{model}`{revision} ({provenance['model_type']}, {provenance['layers']} layers, "
        f"{provenance['parameters']:,} parameters, weights sha256 `{provenance['sha256'][:12]}`). Perplexity is "
        "on the test split, which chose nothing. Every variant, the original included, was fine-tuned on the same "
        "tokens.",
        "## Variants",
        _variants(figures),
        "*Stored* counts every tensor once; *dense* counts a shared weight in every layer that uses it, as the "
        "seeds did. Sharing saves memory, not arithmetic: only `compressed_n` computes less. *Speed-up* is the "
        "original's time over the variant's, both timed in turns in the same process, for the prompt and all new "
        "tokens; for `original` itself it is the noise of that comparison. "
        "*After / original's* compares with the original model after the same fine-tuning.",
        "![Perplexity against stored parameters](plots/perplexity_by_size.png)",
        "## Recovery",
        _recovery(recovery),
        "## Layers taken together",
        _groups(windows),
        "## Window search",
        _search(windows),
        "## Do neighbours agree?",
        _alignment(alignment),
        "## Where the time was measured",
        _environments(latency),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _variants(figures: Figures) -> str:
    original = figures["original"]["perplexity"]
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['parameter_ratio']:.3f}",
            f"{row['dense_parameters']:,}",
            f"{row['ffn_parameters']:,}",
            f"{row['checkpoint_mb']:.2f}",
            _perplexity(row["perplexity"]["before"]),
            _perplexity(row["perplexity"]["after"]),
            f"{row['perplexity']['after'] / original['after']:.3f}",
            f"{row['latency']['prefill_ms']:.1f}",
            f"{row['latency']['decode_ms_per_token']:.2f}",
            f"{row['latency']['speedup']:.2f}",
        ]
        for name, row in figures.items()
    ]
    header = ["variant", "stored", "ratio", "dense", "FFN stored", "MB", "ppl before", "ppl after"]
    header += ["after / original's", "prefill ms", "decode ms/token", "speed-up"]
    return markdown(header, rows)


def _perplexity(value: float) -> str:
    """Four digits or so, whatever the size."""
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _recovery(recovery: Figures) -> str:
    rows = [
        [
            name,
            _perplexity(course["validation_before"]),
            _perplexity(course["validation_after"]),
            f"{course['kept_tokens']:,}",
        ]
        for name, course in recovery.items()
    ]
    budgets = " and ".join(sorted({f"{course['tokens']:,}" for course in recovery.values()}))
    return (
        f"Every variant was trained on {budgets} tokens. What is kept is the best state on the validation split among "
        "the start and several looks on the way; where it was kept after 0 tokens, training only did harm.\n\n"
        + markdown(["variant", "validation before", "validation after", "kept after tokens"], rows)
    )


def _groups(windows: Figures) -> str:
    rows = [
        [name, ", ".join(f"{group[0]}-{group[-1]}" for group in found["groups"])]
        for name, found in windows.items()
        if found["groups"]
    ]
    return markdown(["variant", "layers"], rows)


def _search(windows: Figures) -> str:
    parts = []
    for name, found in windows.items():
        if not found["candidates"]:
            continue
        chosen = [[group[0], group[-1]] for group in found["groups"]]
        rows = [
            [
                layout(candidate["windows"]) + (" (chosen)" if candidate["windows"] == chosen else ""),
                _perplexity(candidate["perplexity"]),
                f"{candidate['perplexity'] / found['original_perplexity']:.3f}",
            ]
            for candidate in found["candidates"]
        ]
        parts.append(
            f"`{name}`, each window with the start this variant gives it, {found['tokens']:,} tokens of the "
            f"validation split; the original has {_perplexity(found['original_perplexity'])} there.\n\n"
            + markdown(["window", "perplexity", "to the original"], rows)
        )
    if not parts:
        return "No variant asked for its best window."
    return "\n".join([*parts, "![Perplexity of every window](plots/window_search.png)"])


def _alignment(alignment: Mapping[str, Any]) -> str:
    parts = [
        f"Mean correlation of neuron pairs in neighbouring layers over {alignment['tokens']:,} tokens, matched and as "
        f"numbered. Independent neurons, matched the same way, would reach {alignment['null']:.3f}: only the excess "
        "counts."
    ]
    for site, found in alignment["sites"].items():
        neighbours = [(key.split("-"), pair) for key, pair in found["pairs"].items()]
        rows = [
            [f"{first}-{other}", f"{pair['matched']:.3f}", f"{pair['unmatched']:.3f}"]
            for (first, other), pair in neighbours
            if int(other) == int(first) + 1
        ]
        silent = sum(found["dead_neurons"].values())
        parts.append(f"By `{site}` (neurons that never vary: {silent}):\n")
        parts.append(markdown(["layers", "matched", "as numbered"], rows))
    return "\n".join(parts)


def _environments(latency: Figures) -> str:
    places: dict[str, list[str]] = {}
    for name, row in latency.items():
        places.setdefault(", ".join(f"{key} {value}" for key, value in row["environment"].items()), []).append(name)
    return "\n".join(f"- {place}: {', '.join(names)}" for place, names in places.items())


def samples(texts: Mapping[str, list[Mapping[str, str]]]) -> str:
    """samples.md: every prompt with each variant's continuations beneath it."""
    prompts = list(dict.fromkeys(text["prompt"] for rows in texts.values() for text in rows))
    lines = ["# Samples", "", "Continuations after fine-tuning (and before), greedy and sampled with one seed.", ""]
    for prompt in prompts:
        lines += [f"## {prompt} …", ""]
        for name, rows in texts.items():
            lines.append(f"**{name}**")
            lines += [
                f"- {row['stage']}, {row['way']}: … {' '.join(row['continuation'].split())}"
                for row in rows
                if row["prompt"] == prompt
            ]
            lines.append("")
    return "\n".join(lines)
