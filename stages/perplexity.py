"""Perplexity of a variant on the test split, which chose nothing, before and after fine-tuning."""

from pathlib import Path

from stages.core import corpus, models, params, runtime, sharing
from stages.core.artifacts import write_json
from stages.core.perplexity import perplexity


def main(profile: str, variant: str, before: Path, after: Path, tokens: Path, out: Path) -> None:
    device = runtime.start(params.section(profile, "runtime"))
    spec = params.section(profile, "perplexity")
    text = corpus.read_tokens(tokens, spec.max_tokens)
    measured = {}
    for name, folder in {"before": before, "after": after}.items():
        model, _ = sharing.load(folder)
        models.check_fits(model, "perplexity.context", spec.context)
        measured[name] = perplexity(
            model.to(device),
            text,
            spec.context,
            spec.stride,
            spec.batch_size,
            watch=lambda batches: runtime.progress(batches, f"perplexity {variant} {name}"),
        )
    write_json(out, {**measured, "tokens": len(text)})


if __name__ == "__main__":
    runtime.entry(main)
