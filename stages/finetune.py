"""Recover a variant by training on the train split, once for each seed; every variant gets the same tokens.

What is kept of a training is its best state on the validation split, the start included.
"""

from pathlib import Path

from stages.core import corpus, models, params, recovery, rules, runtime, sharing
from stages.core.artifacts import replacing, write_json, write_text
from stages.core.families import family_of
from stages.core.perplexity import perplexity
from stages.core.training import train


def main(
    profile: str, variant: str, original: Path, model: Path, tokens: Path, validation: Path, out: Path, curve: Path,
    course: Path,
) -> None:  # fmt: skip
    rules.door(profile, model)
    place = params.section(profile, "runtime")
    device = runtime.start(place)
    recipe, wanted = params.section(profile, "finetune"), params.variant(variant, "finetune")
    rows = corpus.pack(corpus.read_tokens(tokens, recipe.max_tokens), recipe.sequence_length)
    held_out = corpus.read_tokens(validation, recipe.validation.max_tokens)
    teacher = models.open_snapshot(original).to(device) if wanted.distill or wanted.warm_start else None
    courses = {}
    with replacing(out) as draft:
        for seed in recipe.seeds:
            changed, structure = sharing.load(model)
            changed.to(device)
            courses[seed] = recover(
                changed, structure, teacher, rows, held_out, recipe, wanted, seed,
                autocast=runtime.autocast(device, place.precision),
                watch=lambda batches: runtime.progress(batches, f"finetune {variant}, seed {seed}"),
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


def recover(model, structure, teacher, rows, held_out, recipe, wanted, seed, *, autocast, watch):
    """Train one variant with one seed, in place: FFN by FFN for a share of the rows, then end to end."""
    family = family_of(model.config.model_type)
    groups = recovery.parts(model, family, structure.groups, wanted.train)
    rates = [(chosen, getattr(recipe.learning_rate, name)) for name, chosen in groups.items() if chosen]
    penalty = recovery.frobenius(model, wanted.around) if wanted.frobenius else None

    def validate():
        with autocast:
            return perplexity(model, held_out, recipe.sequence_length, recipe.sequence_length, recipe.batch_size)

    early = round(wanted.warm_start * len(rows))
    if early:
        layers = [layer for group in structure.groups for layer in group]
        # FFN by FFN, norms see no gradient; where only deltas are to move, bases keep still here too.
        alone = recovery.parts(model, family, structure.groups, "deltas" if wanted.train == "deltas" else "window")
        train(
            model,
            early,
            recovery.layer_by_layer(model, rows[:early], teacher, family, layers),
            [(alone[name], getattr(recipe.learning_rate, name)) for name in ("deltas", "base") if alone.get(name)],
            recipe,
            seed,
            autocast=autocast,
            watch=watch,
        )
    return train(
        model,
        len(rows) - early,
        recovery.end_to_end(
            model, rows[early:], teacher, wanted.distill, (lambda: wanted.frobenius * penalty()) if penalty else None
        ),
        rates,
        recipe,
        seed,
        validate=validate,
        times=recipe.validation.times,
        autocast=autocast,
        watch=watch,
    )


if __name__ == "__main__":
    runtime.entry(main)
