"""Choose the layers that a variant takes together, by validation perplexity where there is a choice.

Every window is scored with the very start that the variant's surgery will give it.
"""

from pathlib import Path

from stages.core.architecture import rules, windows
from stages.core.process import command, devices
from stages.core.process.artifacts import read_json, write_json
from stages.core.process.progress import progress
from stages.core.settings import params


def main(
    profile: str, variant: str, model: Path, provenance: Path, tokens: Path, permutations: Path, moments: Path,
    out: Path,
) -> None:  # fmt: skip
    rules.validate(profile, model)
    wanted = params.variant(variant, "windows")
    if wanted.choose == "none":
        write_json(out, {"groups": [], "candidates": []})
    elif wanted.choose == "blocks":
        write_json(out, {"groups": windows.blocks(read_json(provenance)["layers"], wanted.size), "candidates": []})
    else:
        write_json(out, searched(profile, variant, wanted, model, tokens, permutations, moments))


def searched(profile, variant, wanted, model, tokens, permutations, moments) -> dict:
    """The chosen groups (and ranks, where a budget chose them), with everything that was scored."""
    from stages.core.architecture import opening
    from stages.core.calibration import statistics
    from stages.core.shrinking.window_search import search
    from stages.core.tasks.language import perplexity
    from stages.core.text import corpus

    device = devices.start(params.section(profile, "runtime"))
    spec, operation = params.section(profile, "search"), params.variant(variant, "surgery")
    dense = opening.open_snapshot(model).to(device)
    text = corpus.read_tokens(tokens, spec.max_tokens)
    found = search(
        dense,
        statistics.read(permutations, moments, device),
        operation,
        wanted,
        lambda changed: perplexity(changed.to(device), text, spec.context, spec.context, spec.batch_size),
        watch=lambda items: progress(items, f"search {variant}"),
    )
    return {
        "groups": [windows.layers(window) for window in found.chosen.windows],
        "candidates": [{"windows": layout.windows, "perplexity": layout.perplexity} for layout in found.scored],
        "original_perplexity": found.original,
        "tokens": len(text),
    } | ({"ranks": found.chosen.ranks} if found.chosen.ranks else {})


if __name__ == "__main__":
    command.entry(main)
