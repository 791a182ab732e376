"""Make a variant from the original model and the layers chosen for it, and count its parameters."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import statistics
from stages.core.forms import checkpoint, counting
from stages.core.forms.structure import Sharing
from stages.core.process import command, devices, hub
from stages.core.process.artifacts import read_json, write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.shrinking import operations
from stages.core.tasks import choice


def main(
    profile: str, variant: str, model: Path, tokenizer: Path, windows: Path, permutations: Path, moments: Path,
    out: Path, size: Path,
) -> None:  # fmt: skip
    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    view, spec = ModelView(opening.open_snapshot(model).to(device)), params.variant(variant, "surgery")
    if spec.method == "external":
        hub.refuse(f"variants.{variant}.surgery", spec.model)
        external = choice.task_of(model).external(spec.model, spec.revision, view, tokenizer)
        changed, sharing = ModelView(external), Sharing()
    else:
        watch = partial(progress, what=f"surgery {variant}")
        calibration, chosen = replace(statistics.read(permutations, moments, device), watch=watch), read_json(windows)
        changed, sharing = operations.operate(
            view, chosen["groups"], calibration, spec, chosen.get("ranks"), chosen.get("forms"), chosen.get("dropped"),
            chosen.get("refit", False),
        )  # fmt: skip
    checkpoint.save(changed, sharing, out)
    counts = counting.count(changed)
    write_json(
        size,
        {
            **counts,
            "parameter_ratio": counts["parameters"] / counting.count(view)["parameters"],
            "checkpoint_mb": (out / "model.safetensors").stat().st_size / 1e6,
        },
    )


if __name__ == "__main__":
    command.entry(main)
