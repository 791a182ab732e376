"""Fit a sentiment head on the recovered model and score it on the test split, which chose nothing."""

import statistics
from pathlib import Path

from stages.core.architecture import rules
from stages.core.architecture.families import family_of
from stages.core.evaluation import classification, intervals
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import labelled
from stages.core.training import recovery


def main(profile: str, variant: str, model: Path, train: Path, test: Path, out: Path, predictions: Path) -> None:
    rules.validate(profile, model)
    runtime = params.section(profile, "runtime")
    device = devices.start(runtime)
    recipe = params.section(profile, "sentiment")
    (rows, labels), (held_out, wanted) = labelled.read(train), labelled.read(test)
    found = []
    for seed in recipe.seeds:
        changed, sharing = checkpoint.load(model)
        changed.to(device)
        # Without deltas `deltas` leaves nothing of the model to train: the head alone.
        parts = {} if recipe.train == "head" else recovery.parts(
            changed, family_of(changed.config.model_type), sharing.groups, recipe.train
        )  # fmt: skip
        watch = lambda items: progress(items, f"sentiment {variant}, seed {seed}")  # noqa: B023, E731
        # Where only the head trains, the model never changes: its states are taken once for all seeds.
        tuned = [parameter for chosen in parts.values() for parameter in chosen]
        if tuned or not found:
            states = classification.features(changed, rows, recipe.batch_size, watch)
        classifier = classification.fit(
            changed, tuned, rows, labels, states, recipe, seed,
            autocast=devices.autocast(device, runtime.precision), watch=watch,
        )  # fmt: skip
        if tuned or not found:
            answers = classification.features(changed, held_out, recipe.batch_size, watch)
        found.append(classification.probabilities(classifier, answers))
    scored = [intervals.scores(wanted, each.argmax(1)) for each in found]
    accuracies = [each["accuracy"] for each in scored]
    write_json(
        out,
        # The interval is that of the first seed's predictions, which are the ones kept.
        scored[0]
        | {
            "seeds": len(found),
            "accuracy_mean": statistics.mean(accuracies),
            "accuracy_spread": statistics.stdev(accuracies) if len(found) > 1 else 0.0,
            "environment": devices.environment(device, runtime.precision),
        },
    )
    classification.keep(predictions, wanted, found[0])


if __name__ == "__main__":
    command.entry(main)
