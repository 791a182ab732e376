"""Operations and bytes of what stages do: forward passes, trainings, fits, files.

P is the number of the model's parameters, L its layers, d its width, f the neurons of an FFN, V its vocabulary. Weights
are float32, moments and fits float64.
"""

from collections.abc import Collection, Mapping

from stages.core.architecture import targets, windows
from stages.core.architecture.shape import Shape, Stage
from stages.core.settings.surgeries import Collapse, Drop, LowRank, Mix, Share
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Blocks, Budget, Forms, Layers

FLOAT, DOUBLE = 4, 8  # bytes; a product in float64 takes twice the time, too
SCORED = 3  # copies of the logits, to score


def forward(shape: Shape, tokens: float) -> float:
    """2 P operations for each token; training takes three times as many (forward, and backward twice that).

    A stage that sees fewer tokens takes so many less; what is in no stage counts as what the last one sees.
    """
    seen = shares(shape)
    layers = sum(part.depth * part.block for part, _ in seen)
    met = sum(part.depth * part.block * share for part, share in seen)
    return 2 * tokens * (met + (shape.parameters - layers) * seen[-1][1])


def near(shape: Shape, reach: int) -> int:
    """How many two layers can share a window of `reach`."""
    return sum(min(reach - 1, shape.layers - 1 - layer) for layer in range(shape.layers))


def stored(variant: Variant, shape: Shape) -> int:
    """The numbers that a variant's checkpoint holds; of searched windows the smallest are taken, of a file all."""
    chosen, surgery = variant.windows, variant.surgery
    if isinstance(surgery, Drop):
        target = chosen.target_parameters if isinstance(chosen, Layers) else surgery.target_parameters
        gone = surgery.layers or targets.layers(shape, target)
        return shape.parameters - gone * shape.block
    if isinstance(surgery, LowRank):
        return targets.target(shape, surgery.target_parameters)
    if isinstance(chosen, Budget | Forms):
        return targets.target(shape, chosen.target_parameters)
    if not isinstance(surgery, Share | Collapse):
        return shape.parameters
    if isinstance(chosen, Blocks):
        sizes = [len(group) for group in windows.blocks(shape.layers, chosen.size, shape.borders)]
    else:
        sizes = [min(chosen.sizes)] * chosen.count
    gone = sum(size - 1 for size in sizes)
    if isinstance(surgery, Collapse):
        return shape.parameters - gone * shape.block
    thin = surgery.rank * sum(map(sum, shape.matrices.values()))
    return shape.parameters - gone * targets.saving(shape, surgery.biases) + sum(sizes) * thin


def sets(forms: Collection[str]) -> int:
    """How many sets of forms the plans of a mixture have, of which each may be fitted again."""
    single, whole = len({"low_rank", "sparse"} & set(forms)), len({"share", "drop"} & set(forms))
    alone = 2 * single - 1 if single else 0
    return alone + whole + (2**whole - 1) * max(1, single)


def activations(shape: Shape, tokens: int) -> float:
    """What a backward pass needs of `tokens`: 12 d and, of the FFN, one f before and two at its activation or gate."""
    inner = 1 + len(shape.matrices)
    each = (part.depth * share * (12 * part.width + inner * part.hidden) for part, share in shares(shape))
    return tokens * FLOAT * sum(each)


def shares(shape: Shape) -> list[tuple[Stage, float]]:
    """Every stage and how much of `positions` it sees: a wider one comes after an image was halved both ways."""
    widths = list(dict.fromkeys(part.width for part in shape.stages))
    return [(part, 0.25 ** widths.index(part.width)) for part in shape.stages]


def scoring(shape: Shape, rows: int, length: int) -> float:
    """The logits of a batch, and what their cross-entropy makes of them."""
    return SCORED * rows * length * FLOAT * shape.vocabulary


def beams(shape: Shape, rows: int, length: int) -> float:
    """Keys and values of every position, one layer's twice while it grows, and the logits of the next token."""
    cache = 2 * rows * length * (shape.layers + 1) * shape.key_heads * shape.head_width
    return FLOAT * (cache + SCORED * rows * shape.vocabulary)


def repairs(shape: Shape, tokens: int) -> float:
    """Repairs by least squares on so many tokens: both models run, and moments of hidden activations are summed."""
    return 2 * forward(shape, tokens) + 4 * tokens * shape.layers * (shape.width + shape.hidden) ** 2


def fit(shape: Shape, variants: Mapping[str, Variant]) -> float:
    """The largest group's layers in float64: their matrices, their moments twice and a factor."""
    merged = [v.windows.size for v in variants.values() if isinstance(v.surgery, Share | Collapse | Mix)]
    layers = min(max(merged, default=1), shape.layers)
    return layers * DOUBLE * (shape.ffn_matrices + 3 * (shape.hidden**2 + shape.width**2))
