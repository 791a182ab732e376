"""Build a variant from the original model and the layers chosen for it, and count what it stores."""

from dataclasses import replace
from pathlib import Path

from stages.core import calibration, sharing
from stages.core.architecture import models, rules
from stages.core.process import runtime
from stages.core.process.artifacts import read_json, write_json
from stages.core.settings import params
from stages.core.shrinking import surgery


def main(
    profile: str, variant: str, model: Path, tokenizer: Path, windows: Path, permutations: Path, moments: Path,
    out: Path, size: Path,
) -> None:  # fmt: skip
    rules.door(profile, model)
    device = runtime.start(params.section(profile, "runtime"))
    dense, spec = models.open_snapshot(model).to(device), params.variant(variant, "surgery")
    if spec.method == "external":
        rival = models.open_rival(spec.model, spec.revision, models.open_tokenizer(tokenizer), dense.config.vocab_size)
        changed, structure = rival, sharing.Sharing()
    else:
        watch = lambda items: runtime.progress(items, f"surgery {variant}")  # noqa: E731
        known, chosen = replace(calibration.read(permutations, moments, device), watch=watch), read_json(windows)
        changed, structure = surgery.operate(dense, chosen["groups"], known, spec, chosen.get("ranks"))
    sharing.save(changed, structure, out)
    counts = sharing.count(changed, structure)
    write_json(
        size,
        {
            **counts,
            "parameter_ratio": counts["parameters"] / sharing.count(dense)["parameters"],
            "checkpoint_mb": (out / "model.safetensors").stat().st_size / 1e6,
        },
    )


if __name__ == "__main__":
    runtime.entry(main)
