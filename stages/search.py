"""Choose the layers that a variant takes together; for the best window, by validation perplexity.

Every contiguous window of the asked size is scored with the very start that the variant's surgery will give it.
"""

from pathlib import Path

from stages.core import params, runtime, windows
from stages.core.artifacts import read_json, write_json


def main(
    profile: str,
    variant: str,
    model: Path,
    provenance: Path,
    tokens: Path,
    permutations: Path,
    moments: Path,
    out: Path,
) -> None:
    wanted = params.variant(variant, "windows")
    depth = read_json(provenance)["layers"]
    if wanted.choose == "none":
        write_json(out, {"groups": [], "candidates": []})
    elif wanted.choose == "blocks":
        write_json(out, {"groups": windows.blocks(depth, wanted.size), "candidates": []})
    else:
        candidates = windows.contiguous(depth, wanted.size)
        write_json(out, best(profile, variant, candidates, model, tokens, permutations, moments))


def best(
    profile: str,
    variant: str,
    candidates: list[list[int]],
    model: Path,
    tokens: Path,
    permutations: Path,
    moments: Path,
) -> dict:
    """The window of lowest perplexity, with every candidate's."""
    from stages.core import calibration, corpus, models, surgery
    from stages.core.perplexity import perplexity

    device = runtime.start(params.section(profile, "runtime"))
    spec, operation = params.section(profile, "search"), params.variant(variant, "surgery")
    dense = models.open_snapshot(model).to(device)
    models.check_fits(dense, "search.context", spec.context)
    text = corpus.read_tokens(tokens, spec.max_tokens)
    known = calibration.read(permutations, moments, device)
    scores = []
    for window in runtime.progress(candidates, f"search {variant}"):
        changed, _ = surgery.operate(dense, [window], known, operation)
        score = perplexity(changed.to(device), text, spec.context, spec.context, spec.batch_size)
        scores.append({"first": window[0], "last": window[-1], "perplexity": score})
    chosen = min(scores, key=lambda score: score["perplexity"])
    return {
        "groups": [list(range(chosen["first"], chosen["last"] + 1))],
        "candidates": scores,
        "original_perplexity": perplexity(dense, text, spec.context, spec.context, spec.batch_size),
        "tokens": len(text),
    }


if __name__ == "__main__":
    runtime.entry(main)
