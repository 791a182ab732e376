"""Tiny image classifiers of every vision family, none of whose parameters has a value that could hide a mistake."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, ViTImageProcessor

from stages.core.architecture import shape
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import MomentStream
from stages.core.calibration.statistics import Calibration
from stages.core.process.errors import UserError

torch.set_num_threads(1)

SIDE, LABELS, LAYERS = 16, 7, 5

_PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 4,
}
# Layers that share lie within a stage: of swin's, layers 0 and 1, and 2 to 4.
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": _PLAIN,
    "deit": {**_PLAIN, "architectures": ["DeiTForImageClassification"]},
    "deit with teacher": {**_PLAIN, "architectures": ["DeiTForImageClassificationWithTeacher"]},
    "beit": {**_PLAIN, "use_relative_position_bias": True},
    "dinov2": {**_PLAIN, "mlp_ratio": 2},
    "dinov2_with_registers": {**_PLAIN, "mlp_ratio": 2},
    "swin": {
        "embed_dim": 16,
        "depths": [2, 3],
        "num_heads": [2, 4],
        "image_size": SIDE,
        "patch_size": 2,
        "window_size": 4,
    },
    "clip": {"vision_config": _PLAIN},
    "siglip": {"vision_config": _PLAIN},
    # As timm writes it: num_classes instead of num_labels.
    "timm_wrapper": {
        "architecture": "tiny_vit_5m_224",
        "model_args": {
            "embed_dims": [8, 16, 32],
            "depths": [1, 2, 3],
            "num_heads": [1, 2, 4],
            "window_sizes": [2, 2, 2],
            "mlp_ratio": 2.0,
        },
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    },
}


def _why_not(name: str) -> str:
    """Why models of this name cannot be made here; empty where they can."""
    try:
        shape.family_for({"model_type": name.split()[0], **CONFIGS[name]})
    except UserError as error:
        return str(error)
    return ""


def parameters(*names: str) -> list[Any]:
    """The names as parameters of a test, each skipped where such models cannot be made here."""
    return [pytest.param(name, marks=pytest.mark.skipif(bool(why := _why_not(name)), reason=why)) for name in names]


every_family = pytest.mark.parametrize("name", parameters(*CONFIGS))
# Groups within the stages of every model above.
GROUPS = [[0, 1], [2, 3, 4]]


def model(name: str, seed: int = 0, **options: Any) -> Any:
    """A model in evaluation mode with all parameters drawn anew, norms and scales about 1, all else about 0."""
    kind = CONFIG_MAPPING[name.split()[0]]
    config = kind.from_dict({**CONFIGS[name], **options}, num_labels=LABELS)
    built = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            about_one = parameter.ndim == 1 and (key.endswith("weight") or "lambda" in key)
            parameter.copy_(1 + 0.2 * noise if about_one else 0.2 * noise)
    return built.eval()


def view(name: str, seed: int = 0) -> ModelView:
    return ModelView(model(name, seed))


def pixels(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(built: Any, images: Tensor | None = None) -> Tensor:
    return built(pixels() if images is None else images).logits


def gap(a: Any, b: Any) -> float:
    """The largest difference between two models' logits."""
    return (logits(a) - logits(b)).abs().max().item()


def processor(name: str = "vit") -> Any:
    """An image processor that makes images of the tiny models' size; timm's own for its models."""
    if name == "timm_wrapper":
        from transformers import TimmWrapperImageProcessor

        return TimmWrapperImageProcessor(CONFIGS[name]["pretrained_cfg"], CONFIGS[name]["architecture"])
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def calibration(found: ModelView, images: int = 24) -> Calibration:
    """A permutation for every pair of layers, and the moments of what the FFNs read of random images."""
    from stages.core.calibration import activations

    batches = [pixels(images, seed) for seed in range(2)]
    streams = [{"input": MomentStream(), "hidden": MomentStream()} for _ in range(found.depth)]
    for seen in activations.stream(found, ("input", "post_activation"), batches):
        for layer, each in enumerate(streams):
            each["input"].update(seen["input"][layer])
            each["hidden"].update(seen["post_activation"][layer])
    moments = [{site: stream.moments() for site, stream in each.items()} for each in streams]

    def permutation(alignment: str, reference: str, first: int, other: int) -> Tensor:
        return torch.randperm(found.neurons(other), generator=torch.Generator().manual_seed(100 * first + other))

    return Calibration(permutation, moments.__getitem__, lambda: batches)
