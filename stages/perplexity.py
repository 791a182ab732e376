"""Perplexity of a variant on the test split, which no choice has used, before and after fine-tuning."""

import statistics
from functools import partial
from pathlib import Path

from stages.core.architecture import rules
from stages.core.evaluation import notes
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks.language import Language
from stages.core.text import corpus


def main(profile: str, variant: str, before: Path, after: Path, tokens: Path, rows: Path, out: Path) -> None:
    rules.validate_variant(profile, after)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "perplexity")
    text, protocol = corpus.read_tokens(tokens, spec.max_tokens), spec.seed_protocol
    task = Language(spec.context, spec.stride, spec.batch_size)

    def measure(folder, *others):
        """The perplexity of a checkpoint, then the values of `others`, functions of its model."""
        model = checkpoint.load(folder)[0].to(device).model
        watch = partial(progress, what=f"perplexity {variant} {folder.parent.name}")
        return [task.score(model, text, watch), *(other(model) for other in others)]

    def as_the_notes(model):
        chosen = corpus.read_rows(rows, protocol.rows)
        return notes.padded_perplexity(model, chosen, protocol.length, protocol.batch_size)

    also = [as_the_notes] if protocol else []
    own, first = measure(after, *also), measure(before, *also)
    # The models of further seeds lie below the first seed's.
    repeats = own[:1] + [measure(folder)[0] for folder in sorted(after.glob("seeds/*"))]
    write_json(
        out,
        {
            "before": first[0],
            "after": statistics.mean(repeats),
            "after_spread": statistics.stdev(repeats) if len(repeats) > 1 else 0.0,
            "seeds": len(repeats),
            "tokens": len(text),
            "environment": devices.environment(device),
        }
        | ({"seed_before": first[1], "seed_after": own[1]} if protocol else {}),
    )


if __name__ == "__main__":
    command.entry(main)
