"""The model card of an exported variant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.reporting.page import render as fill

UNTOLD = ("latency",)  # groups of figures that belong to a machine, not to a model


def render(
    templates: Path,
    *,
    name: str,
    record: Mapping[str, Any],
    auto: str,
    processor: str,
    shares: bool,
    structure: Mapping[str, Any],
    sparsity: float,
    gone: int,
    recipe: Mapping[str, Any],
    figures: Mapping[str, Any],
    original: Mapping[str, Any],
    calibration: Mapping[str, Any],
    source: Mapping[str, Any],
    licence: Mapping[str, str],
) -> str:
    """The card as Markdown, with the header that the hub reads. What is not known (an empty mapping) is left out.

    name: by which the card opens it. record: its variant, form, dtype, weights_bytes and largest_logit_difference.
    auto: the auto class that opens it. processor: the class that opens its image processor, empty where it has none.
    shares: whether it needs the module beside it. structure: its `Sharing`. sparsity: the share of zeros in its masked
    matrices. gone: how many of the source's layers it lacks. recipe: what params.yaml says of the variant. figures,
    original: its figures and the control's. source: the provenance of the model under study. licence: `license` by the
    source's README, or the `file` that holds it.
    """
    own, control = rows(figures), rows(original)
    return fill(
        templates,
        "model_card.md.j2",
        title=name,
        record=record,
        auto=auto,
        images=bool(processor),
        processor=processor,
        shares=shares,
        ties=bool(structure["groups"] or structure["bases"]),
        stores=stores(structure),
        sparse=bool(structure["kept"]),
        done=done(structure, sparsity, gone),
        recipe=recipe,
        figures=[(what, value, control.get(what, "")) for what, value in own.items()],
        calibration=calibration,
        source=source,
        licence=licence,
    )


def stores(structure: Mapping[str, Any]) -> str:
    """What the shared form stores otherwise than the dense one, as a list in words."""
    ways = {
        "what layers share once": structure["groups"] or structure["bases"],
        "products of matrices as their factors": structure["factored"],
        "sparse matrices as masks and values": structure["kept"],
    }
    *others, last = [way for way, there in ways.items() if there] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def done(structure: Mapping[str, Any], sparsity: float, gone: int) -> list[str]:
    """A sentence for each thing that a `Sharing` says of a model's FFNs, and for layers that are gone."""
    told = [f"{gone} of the source's layers {'is' if gone == 1 else 'are'} gone."] if gone else []
    for group in structure["groups"]:
        told.append(f"Layers {', '.join(map(str, group))} (from 0) share one FFN.")
    grouped = {str(layer) for group in structure["groups"] for layer in group}
    if structure["groups"]:
        ranks = {rank for layer in grouped for rank in structure["ranks"].get(layer, {}).values()} or {
            structure["rank"]
        }
        most = f"rank {max(ranks)}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
        told.append(f"Each adds a low-rank delta, {most}." if max(ranks) else "None adds a delta.")
        told.append("Biases are shared too." if structure["biases"] == "shared" else "Biases are each layer's own.")
    if structure["factored"]:
        count = sum(len(roles) for layer, roles in structure["ranks"].items() if layer not in grouped)
        told.append(f"{count} FFN matrices are products of two thin ones.")
    if structure["bases"]:
        told.append(f"Windows of layers hold one input factor: {', '.join(map(str, structure['bases']))}.")
    if structure["kept"]:
        count = sum(len(roles) for roles in structure["kept"].values())
        told.append(f"{count} FFN matrices are sparse: {sparsity:.0%} of their entries are zero.")
    return told or ["No two layers share weights."]


def rows(figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Figure -> value as text, nested names joined by spaces (none twice); a sentence's worth of digits."""
    found: dict[str, str] = {}
    for key, value in figures.items():
        what = f"{prefix} {key.removeprefix(f'{prefix}_')}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found |= {} if key in UNTOLD else rows(value, what)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[what] = f"{value:,}"
        elif isinstance(value, float):
            found[what] = f"{value:.4g}"
    return found
