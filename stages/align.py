"""Match the neurons of layers that can share a window by the Hungarian method, and measure how good the matches are.

The criterion is the correlation of activations or the error of weights, each against a window's first layer and
against the running mean of its aligned layers.
"""

from functools import lru_cache
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import alignment
from stages.core.calibration.statistics import key, read_moments
from stages.core.process import command, devices
from stages.core.process.artifacts import read_tensors, write_arrays, write_json
from stages.core.process.progress import progress
from stages.core.settings import params


def main(profile: str, model: Path, moments: Path, correlations: Path, permutations: Path, quality: Path) -> None:
    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    view = ModelView(opening.open_snapshot(model).to(device))
    reach = params.section(profile, "correlate").reach
    windows = [list(range(first, min(first + reach, view.depth))) for first in range(view.depth - 1)]
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
    ffn_of = recent(view.read_double)
    moments_of = recent(lambda layer: read_moments(moments, layer, device))
    for window in progress(windows, "align by cost"):
        for reference in alignment.REFERENCES:
            keep("cost", reference, window, alignment.by_cost(ffn_of, moments_of, window, reference))
    write_arrays(permutations, found)
    tokens, neurons = int(read_tensors(folder / "layer_00.safetensors", ["tokens"])["tokens"]), view.neurons(0)
    null = alignment.null_correlation(tokens, neurons)
    write_json(quality, {"tokens": tokens, "neurons": neurons, "null": null, "sites": sites})


def reader(folder: Path):
    """A function from two layers to the correlations of their neurons, a float32 array of shape (d_ff, d_ff)."""

    def between(first: int, other: int):
        name = f"layer_{other:02d}"
        return read_tensors(folder / f"layer_{first:02d}.safetensors", [name])[name].numpy()

    return between


def agreement(correlation, permutation) -> dict[str, float]:
    """The mean correlation of pairs of neurons, matched by `permutation` and unmatched."""
    return {
        "matched": alignment.matched_correlation(correlation, permutation),
        "unmatched": float(correlation.diagonal().mean(dtype="float64")),
    }


def dead_neurons(folder: Path) -> dict[str, int]:
    """Layer -> the number of its neurons that never vary."""
    return {
        str(int(file.stem[6:])): int(read_tensors(file, ["dead"])["dead"].sum())
        for file in sorted(folder.glob("layer_*.safetensors"))
    }


if __name__ == "__main__":
    command.entry(main)
