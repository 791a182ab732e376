"""Recover a variant by training on the train split, once for each seed; every variant gets the same tokens.

The checkpoint is the best state on the validation split; the start counts as one. A training that was killed continues
from its last state. The original by the control's recipe is the control, so its files are copied from there.
"""

from pathlib import Path

from stages.core.architecture import rules
from stages.core.process import command
from stages.core.settings import params
from stages.core.settings.recoveries import is_control
from stages.core.training import files


def main(
    profile: str, variant: str, original: Path, control: Path, model: Path, tokens: Path, validation: Path,
    unfinished: Path, out: Path, curve: Path, history: Path,
) -> None:  # fmt: skip
    rules.validate_variant(profile, model)
    spec = params.variant(variant, "finetune")
    outputs, of_control = files.Outputs(out, curve, history), files.Outputs.within(control)
    if is_control(params.variant(variant, "surgery"), spec):
        outputs.copy_from(of_control)
        return
    from stages.core.training import runs

    teacher = None
    if spec.distill or spec.warm_start:
        teacher = {"original": original, "control": of_control.checkpoint}[spec.teacher]
    recipe, runtime = params.section(profile, "finetune"), params.section(profile, "runtime")
    inputs = files.Inputs(model, teacher, tokens, validation)
    runs.recover(f"finetune {variant}", recipe, spec, runtime, inputs, unfinished, outputs)


if __name__ == "__main__":
    command.entry(main)
