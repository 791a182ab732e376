"""The recovery of one checkpoint, once for each seed, and the files that it writes."""

import shutil
from pathlib import Path

from stages.core.forms import checkpoint
from stages.core.process import devices
from stages.core.process.artifacts import replacing, write_json, write_text
from stages.core.process.progress import progress
from stages.core.settings.profiles import Finetune, Runtime
from stages.core.settings.variants import Recovery
from stages.core.tasks.language import Language
from stages.core.text import corpus
from stages.core.training import recovery, resuming
from stages.core.training.files import Inputs, Outputs


def recover(
    name: str, recipe: Finetune, spec: Recovery, runtime: Runtime, inputs: Inputs, unfinished: Path, outputs: Outputs
) -> None:
    """Recover a checkpoint as `spec` says, once for each seed of `recipe`, on the device of `runtime`.

    A training that was killed continues from its state in `unfinished`, if params, machine, code and inputs are the
    same.
    """
    device = devices.start(runtime)
    rows = corpus.pack(corpus.read_tokens(inputs.tokens, recipe.max_tokens), recipe.sequence_length)
    held_out = corpus.read_tokens(inputs.validation, recipe.validation.max_tokens)
    task = Language(recipe.sequence_length, recipe.sequence_length, recipe.batch_size)
    teacher = checkpoint.load(inputs.teacher)[0].to(device) if inputs.teacher else None
    environment = devices.environment(device, runtime.precision)
    # The number of visible devices does not count: one device does the work.
    machine = {key: value for key, value in environment.items() if key != "devices"}
    facts = [recipe.model_dump(), spec.model_dump(), machine]
    states = resuming.state_folder(unfinished, facts, inputs.paths())
    histories = {}
    with replacing(outputs.checkpoint) as draft:
        for seed in recipe.seeds:
            view, sharing = checkpoint.load(inputs.model)
            histories[seed] = recovery.recover(
                view.to(device), sharing, teacher, task, rows, held_out, recipe, spec, seed,
                autocast=devices.autocast(device, runtime.precision),
                watch=lambda batches: progress(batches, f"{name}, seed {seed}"),
                unfinished=states / str(seed),
            )  # fmt: skip
            # The first seed's model is the one that all stages measure; the others give the spread over seeds.
            checkpoint.save(view, sharing, draft if seed == recipe.seeds[0] else draft / "seeds" / str(seed))
    length = recipe.sequence_length
    first = histories[recipe.seeds[0]]
    lines = [f"{s['step']},{s['examples'] * length},{s['loss']:.6f}\n" for s in first.curve]
    write_text(outputs.curve, "step,tokens,loss\n" + "".join(lines))
    evaluations = [evaluation | {"tokens": evaluation["examples"] * length} for evaluation in first.validation]
    best = min(evaluations, key=lambda evaluation: evaluation["value"])
    write_json(
        outputs.history,
        {
            "tokens": recipe.epochs * rows.numel(),
            "kept_tokens": best["tokens"],
            "validation_before": evaluations[0]["value"],
            "validation_after": best["value"],
            "environment": environment,
            "looks": [
                {"tokens": evaluation["tokens"], "perplexity": evaluation["value"]} for evaluation in evaluations
            ],
        },
    )
    if unfinished.exists():
        shutil.rmtree(unfinished)
