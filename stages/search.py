"""Choose the layers that a variant groups, or each matrix's form, by validation perplexity where there is a choice.

Every window is scored as the variant's own surgery makes it.
"""

from functools import partial
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
    spec = params.variant(variant, "windows")
    if spec.choose == "none":
        write_json(out, {"groups": [], "candidates": []})
    elif spec.choose == "blocks":
        known = read_json(provenance)
        groups = windows.blocks(known["layers"], spec.size, known.get("borders", ()))
        write_json(out, {"groups": groups, "candidates": []})
    else:
        write_json(out, searched(profile, variant, spec, model, tokens, permutations, moments))


def searched(profile, variant, windows_spec, model, tokens, permutations, moments) -> dict:
    """The chosen groups, every layout that was scored, and what a target chose: ranks, forms or layers."""
    from stages.core.architecture import opening
    from stages.core.architecture.view import ModelView
    from stages.core.calibration import statistics
    from stages.core.shrinking import layer_search, making, mixing, probes
    from stages.core.shrinking.limits import MOMENTS
    from stages.core.shrinking.window_search import search
    from stages.core.tasks import choice

    device = devices.start(params.section(profile, "runtime"))
    spec, operation = params.section(profile, "search"), params.variant(variant, "surgery")
    view = ModelView(opening.open_snapshot(model).to(device))
    task = choice.by(model, spec)
    held_out = task.held_out(tokens, spec)
    judge = probes.judge_by(task, held_out, device)
    calibration, watch = (
        statistics.read(permutations, moments, device, MOMENTS),
        partial(progress, what=f"search {variant}"),
    )
    if windows_spec.choose == "forms":
        probed = probes.probe_all(view, calibration, windows_spec.forms, judge, watch)
        tried = mixing.search(view, calibration, windows_spec, probed, judge, watch)
        plan, layers = tried[0].plan, tried[0].layers
        of_layers = {"ranks": layers.ranks, "dropped": sorted(layers.gone)} if layers != making.NO_LAYERS else {}
        return {
            "groups": layers.groups,
            "candidates": [],
            "forms": plan,
            "shares": making.shares(view, plan, layers),
            "tried": [{"forms": one.forms, "by": one.by, "perplexity": one.perplexity} for one in tried],
            "original_perplexity": probed.original,
            task.unit: len(held_out),
            **of_layers,
            **({"refit": True} if tried[0].by == "refit" else {}),
        }
    if windows_spec.choose == "layers":
        steps = layer_search.search(view, calibration, windows_spec, judge.score, watch)
        return {
            "groups": [],
            "candidates": [],
            "dropped": sorted(steps[0].layers),
            "tried": [{"dropped": one.layers, "perplexity": one.perplexity} for one in steps],
            "original_perplexity": judge.score(view),
            task.unit: len(held_out),
        }
    found = search(view, calibration, operation, windows_spec, judge.score, watch)
    return {
        "groups": [windows.layers(window) for window in found.chosen.windows],
        "candidates": [candidate(layout) for layout in found.scored],
        "original_perplexity": found.original,
        task.unit: len(held_out),
    } | ({"ranks": found.chosen.ranks} if found.chosen.ranks else {})


def candidate(layout) -> dict:
    """Windows that were scored; `budget` says that it was with the ranks that fill one."""
    found = {"windows": layout.windows, "perplexity": layout.perplexity}
    return found | ({"budget": True} if layout.ranks else {})


if __name__ == "__main__":
    command.entry(main)
