"""Fine-tune the original by the recipe that all variants get: what they are compared with, and a teacher.

A killed training goes on where it was.
"""

from pathlib import Path

from stages.core import trials
from stages.core.architecture import rules
from stages.core.process import runtime
from stages.core.settings import params
from stages.core.settings.variants import CONTROL


def main(profile: str, model: Path, tokens: Path, validation: Path, unfinished: Path, out: Path) -> None:
    rules.door(profile, model)
    recipe, place = params.section(profile, "finetune"), params.section(profile, "runtime")
    ins, outs = trials.Ins(model, None, tokens, validation), trials.Outs.within(out)
    trials.recover("control", recipe, CONTROL, place, ins, unfinished, outs)


if __name__ == "__main__":
    runtime.entry(main)
