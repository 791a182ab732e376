"""Fine-tune the original by the recipe that all variants get: what they are compared with, and a teacher.

A killed training goes on where it was.
"""

from pathlib import Path

from stages.core import trials
from stages.core.architecture import models, rules
from stages.core.process import runtime
from stages.core.settings import params
from stages.core.settings.variants import CONTROL
from stages.core.sharing import Sharing


def main(profile: str, model: Path, tokens: Path, validation: Path, unfinished: Path, out: Path) -> None:
    rules.door(profile, model)
    trials.recover(
        "control",
        lambda: (models.open_snapshot(model), Sharing()),
        None,
        params.section(profile, "finetune"),
        CONTROL,
        params.section(profile, "runtime"),
        tokens,
        validation,
        unfinished,
        [model],
        trials.Outs.within(out),
    )


if __name__ == "__main__":
    runtime.entry(main)
