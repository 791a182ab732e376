"""The recovery of one model, once for each seed, and the files that tell of it."""

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

from stages.core import corpus, recovery, resume, sharing
from stages.core.process import runtime
from stages.core.process.artifacts import replacing, write_json, write_text
from stages.core.settings.profiles import Finetune, Runtime
from stages.core.settings.variants import Recovery


@dataclass(frozen=True)
class Ins:
    """What a recovery reads: two checkpoints, the second to be asked or None, and the tokens of two splits."""

    model: Path
    teacher: Path | None
    tokens: Path
    validation: Path

    def paths(self) -> list[Path]:
        """All there are."""
        return [path for path in astuple(self) if path]


@dataclass(frozen=True)
class Outs:
    """What is left of a recovery: a checkpoint (those of further seeds below it), a curve of losses, its course."""

    checkpoint: Path
    curve: Path
    course: Path

    @classmethod
    def within(cls, folder: Path) -> "Outs":
        """All three in one folder."""
        return cls(folder / "model", folder / "curve.csv", folder / "course.json")

    def taken_over_from(self, other: "Outs") -> None:
        """Become what another recovery has left."""
        for source, target in zip(astuple(other), astuple(self)):
            with replacing(target) as draft:
                shutil.copytree(source, draft) if source.is_dir() else shutil.copyfile(source, draft)


def recover(
    name: str, recipe: Finetune, wanted: Recovery, place: Runtime, ins: Ins, unfinished: Path, outs: Outs
) -> None:
    """Recover a checkpoint as `wanted` says, with every seed of `recipe`, where `place` says.

    A killed training goes on from `unfinished` where it was, as long as params, machine and the files it reads are
    the same.
    """
    device = runtime.start(place)
    rows = corpus.pack(corpus.read_tokens(ins.tokens, recipe.max_tokens), recipe.sequence_length)
    held_out = corpus.read_tokens(ins.validation, recipe.validation.max_tokens)
    master = sharing.opened(ins.teacher)[0].to(device) if ins.teacher else None
    environment = runtime.environment(device, place.precision)
    facts = [recipe.model_dump(), wanted.model_dump(), environment]
    progress = resume.place(unfinished, facts, ins.paths())
    courses = {}
    with replacing(outs.checkpoint) as draft:
        for seed in recipe.seeds:
            changed, structure = sharing.opened(ins.model)
            changed.to(device)
            courses[seed] = recovery.recover(
                changed, structure, master, rows, held_out, recipe, wanted, seed,
                autocast=runtime.autocast(device, place.precision),
                watch=lambda batches: runtime.progress(batches, f"{name}, seed {seed}"),
                unfinished=progress / str(seed),
            )  # fmt: skip
            # The first seed's model is the one that is measured; those of the others only say how far seeds differ.
            sharing.save(changed, structure, draft if seed == recipe.seeds[0] else draft / "seeds" / str(seed))
    length = recipe.sequence_length
    first = courses[recipe.seeds[0]]
    lines = [f"{s['step']},{s['examples'] * length},{s['loss']:.6f}\n" for s in first.curve]
    write_text(outs.curve, "step,tokens,loss\n" + "".join(lines))
    looks = [look | {"tokens": look["examples"] * length} for look in first.validation]
    best = min(looks, key=lambda look: look["value"])
    write_json(
        outs.course,
        {
            "tokens": recipe.epochs * rows.numel(),
            "kept_tokens": best["tokens"],
            "validation_before": looks[0]["value"],
            "validation_after": best["value"],
            "environment": environment,
            "looks": [{"tokens": look["tokens"], "perplexity": look["value"]} for look in looks],
        },
    )
    if unfinished.exists():
        shutil.rmtree(unfinished)
