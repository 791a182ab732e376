"""Build a variant from the original model and the layers chosen for it, and count what it stores."""

from pathlib import Path

from stages.core import calibration, models, params, runtime, sharing, surgery
from stages.core.artifacts import read_json, write_json


def main(variant: str, model: Path, windows: Path, permutations: Path, moments: Path, out: Path, size: Path) -> None:
    dense = models.open_snapshot(model)
    chosen = read_json(windows)
    known, spec = calibration.read(permutations, moments), params.variant(variant, "surgery")
    changed, structure = surgery.operate(dense, chosen["groups"], known, spec, chosen.get("ranks"))
    sharing.save(changed, structure, out)
    counts = sharing.count(changed)
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
