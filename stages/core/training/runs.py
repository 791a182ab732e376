"""The recovery of one model, once for each seed, and the files that tell of it."""

import shutil
from pathlib import Path

from stages.core.forms import checkpoint
from stages.core.process import devices
from stages.core.process.artifacts import replacing, write_json, write_text
from stages.core.process.progress import progress
from stages.core.settings.profiles import Finetune, Runtime
from stages.core.settings.variants import Recovery
from stages.core.text import corpus
from stages.core.training import recovery, resuming
from stages.core.training.files import Inputs, Outputs


def recover(
    name: str, recipe: Finetune, wanted: Recovery, runtime: Runtime, inputs: Inputs, unfinished: Path, outputs: Outputs
) -> None:
    """Recover a checkpoint as `wanted` says, with every seed of `recipe`, where `place` says.

    A killed training goes on from `unfinished` where it was, as long as params, machine and the files it reads are
    the same.
    """
    device = devices.start(runtime)
    rows = corpus.pack(corpus.read_tokens(inputs.tokens, recipe.max_tokens), recipe.sequence_length)
    held_out = corpus.read_tokens(inputs.validation, recipe.validation.max_tokens)
    teacher = checkpoint.open_checkpoint(inputs.teacher)[0].to(device) if inputs.teacher else None
    environment = devices.environment(device, runtime.precision)
    # One device does the work, however many this process may see.
    machine = {key: value for key, value in environment.items() if key != "devices"}
    facts = [recipe.model_dump(), wanted.model_dump(), machine]
    states = resuming.state_folder(unfinished, facts, inputs.paths())
    histories = {}
    with replacing(outputs.checkpoint) as draft:
        for seed in recipe.seeds:
            changed, sharing = checkpoint.open_checkpoint(inputs.model)
            changed.to(device)
            histories[seed] = recovery.recover(
                changed, sharing, teacher, rows, held_out, recipe, wanted, seed,
                autocast=devices.autocast(device, runtime.precision),
                watch=lambda batches: progress(batches, f"{name}, seed {seed}"),
                unfinished=states / str(seed),
            )  # fmt: skip
            # The first seed's model is the one that is measured; those of the others only say how far seeds differ.
            checkpoint.save(changed, sharing, draft if seed == recipe.seeds[0] else draft / "seeds" / str(seed))
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
