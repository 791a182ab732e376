"""Match neurons of layer pairs by the Hungarian method, and say how much better than chance the match is."""

from pathlib import Path

from stages.core import runtime
from stages.core.alignment import match, matched_correlation, null_correlation
from stages.core.artifacts import read_tensors, write_arrays, write_json


def main(correlations: Path, permutations: Path, quality: Path) -> None:
    found, pairs, dead = {}, {}, {}
    for file in runtime.progress(sorted(correlations.glob("layer_*.safetensors")), "align"):
        tensors = {name: tensor.numpy() for name, tensor in read_tensors(file).items()}
        first, tokens, silent = int(file.stem[6:]), int(tensors.pop("tokens")), tensors.pop("dead")
        dead[str(first)] = int(silent.sum())
        for name, correlation in sorted(tensors.items()):
            key = f"{first}-{int(name[6:])}"
            found[key] = match(correlation)
            pairs[key] = {
                "matched": matched_correlation(correlation, found[key]),
                "unmatched": float(correlation.diagonal().mean(dtype="float64")),
            }
    write_arrays(permutations, found)
    write_json(
        quality,
        {
            "tokens": tokens,
            "neurons": len(silent),
            "null": null_correlation(tokens, len(silent)),
            "dead_neurons": dead,
            "pairs": pairs,
        },
    )


if __name__ == "__main__":
    runtime.entry(main)
