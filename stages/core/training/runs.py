"""The recovery of one checkpoint, once for each seed, and the files that it writes."""

import shutil
from pathlib import Path
from typing import Any

from stages.core.forms import checkpoint
from stages.core.process import devices, scratch
from stages.core.process.artifacts import replacing, write_json, write_text
from stages.core.process.progress import progress
from stages.core.settings.images import FinetuneImages
from stages.core.settings.profiles import Runtime
from stages.core.settings.recoveries import Recovery
from stages.core.settings.trainings import Finetune
from stages.core.tasks import choice
from stages.core.training import recovery, resuming
from stages.core.training.answers import Answers
from stages.core.training.files import Inputs, Outputs


def recover(
    name: str,
    recipe: Finetune | FinetuneImages,
    spec: Recovery,
    runtime: Runtime,
    inputs: Inputs,
    unfinished: Path,
    outputs: Outputs,
) -> None:
    """Recover a checkpoint as `spec` says, once for each seed of `recipe`, on the device of `runtime`.

    A training that was killed continues from its state in `unfinished`, if params, machine, code and inputs are the
    same.
    """
    device = devices.start(runtime)
    task = choice.by(inputs.model, recipe)
    rows, held_out = task.training(inputs.tokens, recipe), task.held_out(inputs.validation, recipe.validation)
    teacher = checkpoint.load(inputs.teacher)[0].to(device) if inputs.teacher else None
    environment = devices.environment(device, runtime.precision)
    # The number of visible devices does not count: one device does the work.
    machine = {key: value for key, value in environment.items() if key != "devices"}
    facts = [recipe.model_dump(), spec.model_dump(), machine]
    states = resuming.state_folder(unfinished, facts, inputs.paths())
    histories, answers = {}, answers_of(inputs.teacher, device, machine)
    with replacing(outputs.checkpoint) as draft:
        for seed in recipe.seeds:
            view, sharing = checkpoint.load(inputs.model)
            histories[seed] = recovery.recover(
                view.to(device), sharing, teacher, task, rows, held_out, recipe, spec, seed,
                autocast=devices.autocast(device, runtime.precision),
                watch=lambda batches: progress(batches, f"{name}, seed {seed}"),
                unfinished=states / str(seed), answers=answers,
            )  # fmt: skip
            # The first seed's model is the one that all stages measure; the others give the spread over seeds.
            checkpoint.save(view, sharing, draft if seed == recipe.seeds[0] else draft / "seeds" / str(seed))
    each, unit = task.units(rows), task.unit
    first = histories[recipe.seeds[0]]
    lines = [f"{s['step']},{s['examples'] * each},{s['loss']:.6f}\n" for s in first.curve]
    write_text(outputs.curve, "step,tokens,loss\n" + "".join(lines))
    evaluations = [evaluation | {unit: evaluation["examples"] * each} for evaluation in first.validation]
    best = min(evaluations, key=lambda evaluation: evaluation["value"])
    write_json(
        outputs.history,
        {
            unit: recipe.epochs * len(rows) * each,
            f"kept_{unit}": best[unit],
            "validation_before": evaluations[0]["value"],
            "validation_after": best["value"],
            "environment": environment,
            "looks": [{unit: evaluation[unit], "perplexity": evaluation["value"]} for evaluation in evaluations],
        },
    )
    if unfinished.exists():
        shutil.rmtree(unfinished)


def answers_of(teacher: Path | None, device: Any, machine: dict[str, Any]) -> Answers | None:
    """Where the teacher's answers are kept; None for a stage by itself, and on a GPU, which is faster than a disk."""
    folder = scratch.folder()
    return Answers(folder, machine, teacher) if folder and teacher and device.type == "cpu" else None
