"""What a variant answers, before and after fine-tuning: continuations of prompts, or labels of test images."""

from functools import partial
from pathlib import Path

from stages.core.architecture import rules
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import choice


def main(profile: str, variant: str, before: Path, after: Path, tokenizer: Path, tokens: Path, out: Path) -> None:
    rules.validate_variant(profile, after)
    device = devices.start(params.section(profile, "runtime"))
    spec, task = params.section(profile, "generate"), choice.task_of(after)
    samples = []
    for stage, folder in {"before": before, "after": after}.items():
        model = checkpoint.load(folder)[0].to(device).model
        watch = partial(progress, what=f"generate {variant} {stage}")
        samples += [{"stage": stage, **row} for row in task.samples(model, tokenizer, tokens, spec, watch)]
    write_json(out, samples)


if __name__ == "__main__":
    command.entry(main)
