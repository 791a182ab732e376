"""Time a variant and the original model in turns, in one process."""

from functools import partial
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import choice


def main(profile: str, variant: str, original: Path, model: Path, tokens: Path, out: Path) -> None:
    rules.validate_variant(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "latency")
    # A view of a model splits maps that its class has fused: both run in the same form.
    stock = ModelView(opening.open_snapshot(original).to(device)).model
    pair = {"original": stock, "variant": checkpoint.load(model)[0].to(device).model}
    watch = partial(progress, what=f"latency {variant}")
    measured = choice.task_of(model).time(pair, tokens, spec, device, watch)
    write_json(out, measured | {"environment": devices.environment(device)})


if __name__ == "__main__":
    command.entry(main)
