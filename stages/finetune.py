"""Recover a variant by training on the train split, once for each seed; every variant gets the same tokens.

What is kept of a training is its best state on the validation split, the start included. A killed training goes on
where it was. The original by the control's recipe is the control, and taken over from there.
"""

from pathlib import Path

from stages.core.architecture import rules
from stages.core.process import command
from stages.core.settings import params
from stages.core.settings.variants import is_control
from stages.core.training import files


def main(
    profile: str, variant: str, original: Path, control: Path, model: Path, tokens: Path, validation: Path,
    unfinished: Path, out: Path, curve: Path, history: Path,
) -> None:  # fmt: skip
    rules.validate(profile, model)
    wanted = params.variant(variant, "finetune")
    here, there = files.Outputs(out, curve, history), files.Outputs.within(control)
    if is_control(params.variant(variant, "surgery"), wanted):
        here.copy_from(there)
        return
    from stages.core.training import runs

    teacher = {"original": original, "control": there.checkpoint}[wanted.teacher]
    asked = teacher if wanted.distill or wanted.warm_start else None
    recipe, runtime = params.section(profile, "finetune"), params.section(profile, "runtime")
    inputs = files.Inputs(model, asked, tokens, validation)
    runs.recover(f"finetune {variant}", recipe, wanted, runtime, inputs, unfinished, here)


if __name__ == "__main__":
    command.entry(main)
