"""Checkpoints of models that share or factor their weights.

A checkpoint is a folder with two files. model.safetensors stores every parameter once. config.json has a model type of
its own, so that no stock class opens it with FFNs missing; it holds the `Sharing` and the config of the dense model.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stages.core.architecture.opening import blank, open_snapshot
from stages.core.architecture.view import ModelView
from stages.core.architecture.weights import described, refuse_difference
from stages.core.forms.structure import Sharing, install, keep_zeros
from stages.core.process.artifacts import read_json, read_tensors, replacing, write_json, write_tensors
from stages.core.process.errors import UserError

MODEL_TYPE = "shared_ffn"


def save(view: ModelView, sharing: Sharing, folder: Path) -> None:
    """Write a model with its structure as a checkpoint."""
    config = {"model_type": MODEL_TYPE, "sharing": asdict(sharing), "dense": described(view.model)}
    with replacing(folder) as draft:
        draft.mkdir()
        write_json(draft / "config.json", config)
        write_tensors(draft / "model.safetensors", view.tensors())


def load(folder: Path) -> tuple[ModelView, Sharing]:
    """The model that `save` wrote (float32, on the CPU, in evaluation mode) and its structure.

    Raises UserError unless the stored tensors are exactly those that the config asks for.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.keys() != {"model_type", "sharing", "dense"}:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}/config.json: model_type is {found!r}, not {MODEL_TYPE!r} as stage `surgery` writes")
    stored = read_tensors(folder / "model.safetensors")
    try:
        # First without memory: a damaged config may ask for any amount of it.
        with torch.device("meta"):
            expected = _build(config)[0].tensors()
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything at a config that makes no sense
        raise UserError(f"{folder}/config.json describes no model: {' '.join(str(error).split())[:200]}") from error
    shapes = {name: (stored[name].shape, expected[name].shape) for name in stored.keys() & expected.keys()}
    odd = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    try:
        refuse_difference(expected.keys() - stored.keys(), stored.keys() - expected.keys(), odd)
    except UserError as error:
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {error}") from error
    view, sharing = _build(config)
    with torch.no_grad():
        for name, tensor in view.tensors().items():
            tensor.copy_(stored[name])
    if sharing.pruned:
        keep_zeros(view)
    view.model.eval()
    return view, sharing


def open_checkpoint(folder: Path) -> tuple[ModelView, Sharing]:
    """What `load` gives, or the snapshot that stage `base` wrote, with an empty structure."""
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("model_type") == MODEL_TYPE:
        return load(folder)
    return ModelView(open_snapshot(folder)), Sharing()


def _build(config: dict[str, Any]) -> tuple[ModelView, Sharing]:
    """A model with the structure that a config describes, and arbitrary weights."""
    view, sharing = ModelView(blank(config["dense"])), Sharing(**config["sharing"])
    install(view, sharing)
    return view, sharing
