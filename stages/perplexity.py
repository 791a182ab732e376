"""Perplexity of a variant on the test split, which chose nothing, before and after fine-tuning."""

import statistics
from pathlib import Path

from stages.core import corpus, models, params, runtime, sharing
from stages.core.artifacts import write_json
from stages.core.perplexity import perplexity


def main(profile: str, variant: str, before: Path, after: Path, tokens: Path, out: Path) -> None:
    device = runtime.start(params.section(profile, "runtime"))
    spec = params.section(profile, "perplexity")
    text = corpus.read_tokens(tokens, spec.max_tokens)

    def measure(folder):
        model, _ = sharing.load(folder)
        models.check_fits(model, "perplexity.context", spec.context)
        watch = lambda batches: runtime.progress(batches, f"perplexity {variant} {folder.parent.name}")  # noqa: E731
        return perplexity(model.to(device), text, spec.context, spec.stride, spec.batch_size, watch)

    # Beside the variant's own model lie those of further seeds.
    seeds = [measure(folder) for folder in [after, *sorted(after.glob("seeds/*"))]]
    write_json(
        out,
        {
            "before": measure(before),
            "after": statistics.mean(seeds),
            "after_spread": statistics.stdev(seeds) if len(seeds) > 1 else 0.0,
            "seeds": len(seeds),
            "tokens": len(text),
            "environment": runtime.environment(device),
        },
    )


if __name__ == "__main__":
    runtime.entry(main)
