"""Recover a variant by training on the train split: all weights, or only its deltas."""

from pathlib import Path

from stages.core import corpus, models, params, runtime, sharing
from stages.core.artifacts import write_text
from stages.core.training import train


def main(profile: str, variant: str, model: Path, tokens: Path, out: Path, curve: Path) -> None:
    device = runtime.start(params.section(profile, "runtime"))
    recipe, recovery = params.section(profile, "finetune"), params.variant(variant, "finetune")
    changed, structure = sharing.load(model)
    models.check_fits(changed, "finetune.sequence_length", recipe.sequence_length)
    changed.to(device)
    deltas = list(sharing.deltas(changed))
    trained = [p for delta in deltas for p in (delta.A, delta.B)] if recovery.train == "deltas" else None
    steps = train(
        changed,
        corpus.pack(corpus.read_tokens(tokens, recipe.max_tokens), recipe.sequence_length),
        trained or list(changed.parameters()),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=getattr(recipe.learning_rate, recovery.train),
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        seed=recipe.seed,
        penalty=(lambda: recovery.frobenius * sum(d.squared_norm() for d in deltas)) if recovery.frobenius else None,
        watch=lambda batches: runtime.progress(batches, f"finetune {variant}"),
    )
    sharing.save(changed, structure, out)
    write_text(curve, "step,tokens,loss\n" + "".join(f"{s['step']},{s['tokens']},{s['loss']:.6f}\n" for s in steps))


if __name__ == "__main__":
    runtime.entry(main)
