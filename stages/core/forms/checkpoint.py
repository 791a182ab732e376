"""Checkpoints: folders that `from_pretrained` opens.

A model that shares nothing is a stock checkpoint. Any other has the model type of `modeling_shared_ffn`, which no stock
class opens with FFNs missing: its config holds the `Sharing` and the config of the dense model, and its weights hold
every parameter once.
"""

import filecmp
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stages.core.architecture import attention
from stages.core.architecture.opening import open_snapshot
from stages.core.architecture.view import ModelView
from stages.core.architecture.weights import described, refuse_difference
from stages.core.forms.modeling_shared_ffn import MODEL_TYPE, SharedFfnConfig, Sharing, model_class
from stages.core.process.artifacts import read_json, read_shapes, replacing, write_tensors, write_text
from stages.core.process.errors import UserError


def save(view: ModelView, sharing: Sharing, folder: Path) -> None:
    """Write a model with its structure as a checkpoint."""
    with replacing(folder) as draft:
        draft.mkdir()
        write_text(draft / "config.json", config_of(view, sharing).to_json_string())
        tensors = view.tensors()
        write_tensors(draft / "model.safetensors", view.fuse(tensors) if sharing == Sharing() else tensors)


def config_of(view: ModelView, sharing: Sharing) -> Any:
    """The config of a model with this structure: a stock one where the model shares nothing."""
    dense = described(view.model) | {"dtype": "float32"}
    if sharing == Sharing():
        config = type(view.model.config).from_dict(dense)
        config.architectures = [type(view.model).__name__]
        return config
    whole = {"dense_type": dense.pop("model_type"), "dense": dense}
    return SharedFfnConfig.from_dict({**whole, "sharing": asdict(sharing), "linears": view.paths})


def load(folder: Path) -> tuple[ModelView, Sharing]:
    """The model of a checkpoint or of a stock folder (float32, on the CPU, in evaluation mode) and its structure.

    Raises UserError unless the stored tensors are exactly those that the config asks for.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        return ModelView(open_snapshot(folder)), Sharing()
    attention.register()
    stored = {name: shape for file in _weights(folder) for name, shape in read_shapes(file).items()}
    try:
        # First without memory: a damaged config may ask for any amount of it.
        config = SharedFfnConfig.from_dict(config)
        expected = {name: tuple(tensor.shape) for name, tensor in _outline(config).tensors().items()}
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything at a config that makes no sense
        raise UserError(f"{folder}/config.json describes no model: {' '.join(str(error).split())[:200]}") from error
    shapes = {name: (stored[name], expected[name]) for name in stored.keys() & expected.keys()}
    odd = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    try:
        refuse_difference(expected.keys() - stored.keys(), stored.keys() - expected.keys(), odd)
    except UserError as error:
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {error}") from error
    model = model_class(config).from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return ModelView(model), Sharing(**model.config.sharing)


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same config and weights, byte for byte."""
    names = ["config.json", *(file.name for file in _weights(one))]
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def _weights(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: one, or the parts of an export."""
    return sorted(folder.glob("model-*.safetensors")) or [folder / "model.safetensors"]


def _outline(config: Any) -> ModelView:
    """The model of a config, without memory for its parameters."""
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):
        model = model_class(config)(config)
    model.tie_weights()
    return ModelView(model)
