"""Match the neurons of layers that can share a window by the Hungarian method, and measure how good the matches are.

The criterion is the correlation of activations or the error of weights, each against a window's first layer and
against the running mean of its aligned layers.
"""

from functools import partial
from pathlib import Path
from statistics import fmean

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.architecture.windows import stages
from stages.core.calibration import alignment
from stages.core.calibration.correlation import SHIFTED
from stages.core.calibration.statistics import key, read_moments
from stages.core.process import command, devices
from stages.core.process.artifacts import read_shapes, read_tensors, write_arrays, write_json
from stages.core.process.progress import progress
from stages.core.settings import params


def main(profile: str, model: Path, moments: Path, correlations: Path, permutations: Path, quality: Path) -> None:
    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    view = ModelView(opening.open_snapshot(model).to(device))
    reach = params.section(profile, "correlate").reach
    groups = [stage[first : first + reach] for stage in stages(view.depth, view.borders) for first in range(len(stage))]
    windows = [list(group) for group in groups if len(group) > 1]
    found, sites = {}, {}
    for folder in sorted(path for path in correlations.iterdir() if path.is_dir()):
        watch = partial(progress, what=f"align by {folder.name}")
        pairs = {}

        def note(first, layer, correlation, order, pairs=pairs):
            pairs[first, layer] = agreement(correlation, order)

        orders = alignment.by_correlation(reader(folder), windows, alignment.REFERENCES, watch, note)
        found |= named(folder.name, orders)
        sites[folder.name] = {
            "null": chance(folder),
            "dead_neurons": dead_neurons(folder),
            "pairs": {f"{first}-{layer}": pairs[first, layer] for first, layer in sorted(pairs)},
        }
    orders = alignment.by_cost(
        view.read, partial(read_moments, moments, device=device), windows, alignment.REFERENCES,
        partial(progress, what="align by cost"),
        signs=view.family.gated,
    )  # fmt: skip
    found |= named("cost", orders)
    write_arrays(permutations, found)
    tokens = int(read_tensors(folder / "layer_00.safetensors", ["tokens"])["tokens"])
    neurons = max(view.neurons(layer) for layer in range(view.depth))  # the more, the higher is chance
    independent = alignment.null_correlation(tokens, neurons)
    write_json(quality, {"tokens": tokens, "neurons": neurons, "independent": independent, "sites": sites})


def named(way: str, orders: alignment.Orders) -> dict:
    """The orders by the names that the file of permutations gives them."""
    return {
        key(way, reference, first, layer): order
        for reference, windows in orders.items()
        for first, layers in windows.items()
        for layer, order in layers.items()
    }


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


def chance(folder: Path) -> float:
    """The mean matched correlation of neighbouring layers at different tokens: what is no agreement of theirs."""
    found = [
        alignment.matched_correlation(correlation, alignment.match(correlation))
        for file in sorted(folder.glob("layer_*.safetensors"))
        if SHIFTED in read_shapes(file)
        for correlation in [read_tensors(file, [SHIFTED])[SHIFTED].numpy()]
    ]
    return fmean(found) if found else 0.0


def dead_neurons(folder: Path) -> dict[str, int]:
    """Layer -> the number of its neurons that never vary."""
    return {
        str(int(file.stem[6:])): int(read_tensors(file, ["dead"])["dead"].sum())
        for file in sorted(folder.glob("layer_*.safetensors"))
    }


if __name__ == "__main__":
    command.entry(main)
