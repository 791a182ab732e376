"""Fit a sentiment head on the recovered model and score it on the test split, which no choice has used."""

import statistics
from functools import partial
from pathlib import Path

from stages.core.architecture import rules
from stages.core.evaluation import classification
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import intervals
from stages.core.text import labelled
from stages.core.training import recovery


def main(profile: str, variant: str, model: Path, train: Path, test: Path, out: Path, predictions: Path) -> None:
    import torch

    recipe = params.section(profile, "sentiment")
    if recipe is None:  # the task has no sentiment
        write_json(out, {})
        classification.keep(predictions, torch.empty(0, dtype=torch.int64), torch.empty(0, 1))
        return
    rules.validate_variant(profile, model)
    runtime = params.section(profile, "runtime")
    device = devices.start(runtime)
    (rows, labels), (held_out, test_labels) = labelled.read(train), labelled.read(test)
    found = []
    for seed in recipe.seeds:
        view, sharing = checkpoint.load(model)
        changed = view.to(device).model
        # `deltas` of a model without deltas is no parameter at all: only the head is trained.
        parts = {} if recipe.train == "head" else recovery.parts(view, sharing.groups, recipe.train)
        watch = partial(progress, what=f"sentiment {variant}, seed {seed}")
        # If only the head is trained, the model and its states are the same for all seeds.
        tuned = [parameter for chosen in parts.values() for parameter in chosen]
        if tuned or not found:
            states = classification.features(changed, rows, recipe.batch_size, watch)
        classifier = classification.fit(
            changed, tuned, rows, labels, states, recipe, seed,
            autocast=devices.autocast(device, runtime.precision), watch=watch,
        )  # fmt: skip
        if tuned or not found:
            test_states = classification.features(changed, held_out, recipe.batch_size, watch)
        found.append(classification.probabilities(classifier, test_states))
    scored = [intervals.scores(test_labels, each.argmax(1)) for each in found]
    accuracies = [each["accuracy"] for each in scored]
    write_json(
        out,
        # The interval is that of the first seed, whose predictions are kept.
        scored[0]
        | {
            "seeds": len(found),
            "accuracy_mean": statistics.mean(accuracies),
            "accuracy_spread": statistics.stdev(accuracies) if len(found) > 1 else 0.0,
            "environment": devices.environment(device, runtime.precision),
        },
    )
    classification.keep(predictions, test_labels, found[0])


if __name__ == "__main__":
    command.entry(main)
