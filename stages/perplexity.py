"""How good a variant is on the test split, which no choice has used, before and after fine-tuning: its perplexity.

Where there is another text, of another kind than what a model was calibrated and trained on, its perplexity stands
beside that. For image classification that is exp of the cross-entropy, and accuracy stands beside it. The losses are
kept, so that variants can be compared answer by answer.
"""

import statistics
from functools import partial
from pathlib import Path

from stages.core.architecture import rules
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import choice, losses


def main(
    profile: str, variant: str, before: Path, after: Path, tokens: Path, rows: Path, other: Path, out: Path,
    predictions: Path,
) -> None:  # fmt: skip
    rules.validate_variant(profile, after)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "perplexity")
    task = choice.by(after, spec)
    held_out, elsewhere = task.held_out(tokens, spec), task.other(other, spec)

    def opened(folder):
        return checkpoint.load(folder)[0].to(device).model, partial(
            progress, what=f"perplexity {variant} {folder.parent.name}"
        )

    def measure(folder):
        """What is measured of a checkpoint, and the losses on the test split."""
        model, watch = opened(folder)
        found = task.measure(model, held_out, rows, watch)
        return found.figures | on_other(model, watch), found.losses

    def on_other(model, watch):
        """The perplexity on the other text, as `other`; empty without one."""
        return {} if elsewhere is None else {"other": task.score(model, elsewhere, watch)}

    own, own_losses = measure(after)
    # Where no training helped, the start was kept.
    first, first_losses = (dict(own), own_losses) if checkpoint.same(before, after) else measure(before)
    # The models of further seeds lie below the first seed's.
    every = [own, *(measure(folder)[0] for folder in sorted(after.glob("seeds/*")))]
    repeats = [found["perplexity"] for found in every]
    also = {name: [found[name] for found in every] for name in own if name != "perplexity"}
    means = {name: statistics.mean(values) for name, values in also.items()}
    spreads = {f"{name}_after_spread": statistics.stdev(values) for name, values in also.items() if len(values) > 1}
    write_json(
        out,
        {
            "before": first["perplexity"],
            "after": statistics.mean(repeats),
            "after_spread": statistics.stdev(repeats) if len(repeats) > 1 else 0.0,
            "seeds": len(repeats),
            task.unit: len(held_out),
            "environment": devices.environment(device),
        }
        | ({} if elsewhere is None else {f"other_{task.unit}": len(elsewhere)})
        | {f"{name}_{when}": found[name] for name in means for when, found in (("before", first), ("after", means))}
        | spreads,
    )
    # Those of the first seed.
    losses.keep(predictions, first_losses, own_losses, task.block)


if __name__ == "__main__":
    command.entry(main)
