"""Fine-tune the original by the recipe of all variants, as their reference and their teacher.

A training that was killed continues from its last state.
"""

from pathlib import Path

from stages.core.architecture import rules
from stages.core.process import command
from stages.core.settings import params
from stages.core.settings.recoveries import CONTROL
from stages.core.training import files, runs


def main(profile: str, model: Path, tokens: Path, validation: Path, unfinished: Path, out: Path) -> None:
    rules.validate(profile, model)
    recipe, runtime = params.section(profile, "finetune"), params.section(profile, "runtime")
    inputs, outputs = files.Inputs(model, None, tokens, validation), files.Outputs.within(out)
    runs.recover("control", recipe, CONTROL, runtime, inputs, unfinished, outputs)


if __name__ == "__main__":
    command.entry(main)
