"""Recover a variant by training on the train split, once for each seed; every variant gets the same tokens.

What is kept of a training is its best state on the validation split, the start included. A killed training goes on
where it was.
"""

import shutil
from pathlib import Path

from stages.core import corpus, recovery, resume, sharing
from stages.core.architecture import models, rules
from stages.core.process import runtime
from stages.core.process.artifacts import replacing, write_json, write_text
from stages.core.settings import params


def main(
    profile: str, variant: str, original: Path, model: Path, tokens: Path, validation: Path, unfinished: Path,
    out: Path, curve: Path, course: Path,
) -> None:  # fmt: skip
    rules.door(profile, model)
    place = params.section(profile, "runtime")
    device = runtime.start(place)
    recipe, wanted = params.section(profile, "finetune"), params.variant(variant, "finetune")
    rows = corpus.pack(corpus.read_tokens(tokens, recipe.max_tokens), recipe.sequence_length)
    held_out = corpus.read_tokens(validation, recipe.validation.max_tokens)
    teacher = models.open_snapshot(original).to(device) if wanted.distill or wanted.warm_start else None
    facts = [recipe.model_dump(), wanted.model_dump(), runtime.environment(device, place.precision)]
    progress = resume.place(unfinished, facts, [original, model, tokens, validation])
    courses = {}
    with replacing(out) as draft:
        for seed in recipe.seeds:
            changed, structure = sharing.load(model)
            changed.to(device)
            courses[seed] = recovery.recover(
                changed, structure, teacher, rows, held_out, recipe, wanted, seed,
                autocast=runtime.autocast(device, place.precision),
                watch=lambda batches: runtime.progress(batches, f"finetune {variant}, seed {seed}"),
                unfinished=progress / str(seed),
            )  # fmt: skip
            # The first seed's model is the variant's; those of the others only say how far seeds differ.
            sharing.save(changed, structure, draft if seed == recipe.seeds[0] else draft / "seeds" / str(seed))
    length = recipe.sequence_length
    first = courses[recipe.seeds[0]]
    lines = [f"{s['step']},{s['examples'] * length},{s['loss']:.6f}\n" for s in first.curve]
    write_text(curve, "step,tokens,loss\n" + "".join(lines))
    looks = [look | {"tokens": look["examples"] * length} for look in first.validation]
    best = min(looks, key=lambda look: look["value"])
    write_json(
        course,
        {
            "tokens": recipe.epochs * rows.numel(),
            "kept_tokens": best["tokens"],
            "validation_before": looks[0]["value"],
            "validation_after": best["value"],
            "environment": runtime.environment(device, place.precision),
            "looks": [{"tokens": look["tokens"], "perplexity": look["value"]} for look in looks],
        },
    )
    if unfinished.exists():
        shutil.rmtree(unfinished)


if __name__ == "__main__":
    runtime.entry(main)
