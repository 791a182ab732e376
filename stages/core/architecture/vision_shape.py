"""The sizes of a vision transformer before it is opened, read off a model of its config that takes no memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

from stages.core.architecture.families import family_of
from stages.core.architecture.shape import Shape, Stage

# The parameters that are tokens beside the patches.
SPECIAL = {"cls_token", "class_embedding", "distillation_token", "register_tokens"}


@dataclass(frozen=True)
class VisionShape(Shape):
    """Sizes of a vision transformer. `width` and `hidden` are those of its deepest stage.

    positions: the most tokens that a layer sees of an image. vocabulary: its labels.
    """

    def __str__(self) -> str:
        sizes = ", ".join(f"{part.depth} layers of width {part.width} with FFN {part.hidden}" for part in self.stages)
        return (
            f"{self.model_type}, {sizes}, at most {self.positions} tokens an image, {self.vocabulary} labels, "
            f"{self.parameters:,} parameters"
        )


def of_config(config: Mapping[str, Any]) -> VisionShape:
    """The shape that the config.json of an image classifier describes. Raises what transformers raises at it."""
    import torch

    from stages.core.architecture.opening import blank
    from stages.core.architecture.view import ModelView

    with torch.device("meta"):
        view = ModelView(blank(dict(config)))
        tokens = _tokens(view.model)
    stages: list[Stage] = []
    for first, depth in view.stacks:
        block = sum(parameter.numel() for parameter in view.blocks[first].parameters())
        stages.append(Stage(first, depth, view.width(first), view.neurons(first), block))
    deepest = max(stages, key=lambda stage: stage.depth)
    return VisionShape(
        model_type=view.model.config.model_type,
        layers=view.depth,
        width=deepest.width,
        hidden=deepest.hidden,
        positions=tokens,
        vocabulary=view.model.config.num_labels,
        heads=1,
        key_heads=1,
        head_width=deepest.width,
        tied=False,
        biases=frozenset({"ffn"} if view.linears(deepest.first)["in"].bias is not None else ()),
        stages=tuple(stages),
        parameters=sum(parameter.numel() for parameter in view.model.parameters()),
    )


def _tokens(model: Any) -> int:
    """The most tokens that a layer sees of an image of the size in the config: its patches and special tokens.

    No forward pass counts them: on a device without memory it would leave tensors in caches of transformers.
    """
    config, family = model.config.to_dict(), family_of(model.config.model_type)
    _, height, width = image_size(config)
    high, wide = _pair(family.patch if isinstance(family.patch, int) else _at(config, family.patch))
    special = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in SPECIAL]
    return (height // high) * (width // wide) + sum(p.numel() // p.shape[-1] for p in special)


def image_size(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that a model of this config.json takes; None where it takes text."""
    family = family_of(config["model_type"])
    if family.task != "image_classification":
        return None
    path = family.image
    size, (*above, _) = _at(config, path), path.split(".")
    channels = size[0] if isinstance(size, (list, tuple)) and len(size) == 3 else None
    return channels or _at(config, ".".join([*above, "num_channels"])), *_pair(size)


def _at(config: Mapping[str, Any], path: str) -> Any:
    """What a config holds at a dotted path."""
    return reduce(getitem, path.split("."), config)


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of what a config gives as both, with channels before them, or as one number."""
    return tuple(size[-2:]) if isinstance(size, (list, tuple)) else (size, size)
