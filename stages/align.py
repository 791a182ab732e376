"""Match neurons of layers that can share a window by the Hungarian method, and say how much better than chance it is.

By the correlation of their activations and by the cost of their weights, each against a window's first layer and
against the running centre of its layers so far.
"""

from functools import lru_cache
from pathlib import Path

from stages.core.architecture import ffn, opening, rules
from stages.core.architecture.families import family_of
from stages.core.calibration import alignment
from stages.core.calibration.statistics import key, read_moments
from stages.core.process import command, devices
from stages.core.process.artifacts import read_tensors, write_arrays, write_json
from stages.core.process.progress import progress
from stages.core.settings import params


def main(profile: str, model: Path, moments: Path, correlations: Path, permutations: Path, quality: Path) -> None:
    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    dense = opening.open_snapshot(model).to(device)
    family = family_of(dense.config.model_type)
    depth, reach = len(family.blocks(dense)), params.section(profile, "correlate").reach
    windows = [list(range(first, min(first + reach, depth))) for first in range(depth - 1)]
    found, sites = {}, {}

    def keep(name, reference, window, matched):
        found.update({key(name, reference, window[0], layer): order for layer, order in matched.items()})

    for folder in sorted(path for path in correlations.iterdir() if path.is_dir()):
        between = reader(folder)
        for window in progress(windows, f"align by {folder.name}"):
            for reference in alignment.REFERENCES:
                keep(folder.name, reference, window, alignment.by_correlation(between, window, reference))
        sites[folder.name] = {
            "dead_neurons": dead_neurons(folder),
            "pairs": {
                f"{first}-{layer}": agreement(between(first, layer), found[key(folder.name, "first", first, layer)])
                for first, *others in windows
                for layer in others
            },
        }
    recent = lru_cache(maxsize=reach)
    ffn_of = recent(lambda layer: {name: value.double() for name, value in ffn.read(dense, family, layer).items()})
    moments_of = recent(lambda layer: read_moments(moments, layer, device))
    for window in progress(windows, "align by cost"):
        for reference in alignment.REFERENCES:
            keep("cost", reference, window, alignment.by_cost(ffn_of, moments_of, window, reference))
    write_arrays(permutations, found)
    tokens, neurons = int(read_tensors(folder / "layer_00.safetensors", ["tokens"])["tokens"]), ffn.width(dense, family)
    null = alignment.null_correlation(tokens, neurons)
    write_json(quality, {"tokens": tokens, "neurons": neurons, "null": null, "sites": sites})


def reader(folder: Path):
    """A function from two layers to their correlations, an array of shape (neurons, neurons)."""

    def between(first: int, other: int):
        name = f"layer_{other:02d}"
        return read_tensors(folder / f"layer_{first:02d}.safetensors", [name])[name].numpy()

    return between


def agreement(correlation, permutation) -> dict[str, float]:
    """The mean correlation of neuron pairs, matched and as numbered."""
    return {
        "matched": alignment.matched_correlation(correlation, permutation),
        "unmatched": float(correlation.diagonal().mean(dtype="float64")),
    }


def dead_neurons(folder: Path) -> dict[str, int]:
    """Layer -> how many of its neurons never vary."""
    return {
        str(int(file.stem[6:])): int(read_tensors(file, ["dead"])["dead"].sum())
        for file in sorted(folder.glob("layer_*.safetensors"))
    }


if __name__ == "__main__":
    command.entry(main)
