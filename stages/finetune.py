"""Recover a variant by training on the train split, once for each seed; every variant gets the same tokens.

What is kept of a training is its best state on the validation split, the start included. A killed training goes on
where it was. The original by the control's recipe is the control, and taken over from there.
"""

from pathlib import Path

from stages.core import trials
from stages.core.architecture import rules
from stages.core.process import runtime
from stages.core.settings import params
from stages.core.settings.variants import is_control


def main(
    profile: str, variant: str, original: Path, control: Path, model: Path, tokens: Path, validation: Path,
    unfinished: Path, out: Path, curve: Path, course: Path,
) -> None:  # fmt: skip
    rules.door(profile, model)
    wanted = params.variant(variant, "finetune")
    here, there = trials.Outs(out, curve, course), trials.Outs.within(control)
    if is_control(params.variant(variant, "surgery"), wanted):
        here.taken_over_from(there)
        return
    teacher = {"original": original, "control": there.checkpoint}[wanted.teacher]
    asked = teacher if wanted.distill or wanted.warm_start else None
    recipe, place = params.section(profile, "finetune"), params.section(profile, "runtime")
    ins = trials.Ins(model, asked, tokens, validation)
    trials.recover(f"finetune {variant}", recipe, wanted, place, ins, unfinished, here)


if __name__ == "__main__":
    runtime.entry(main)
