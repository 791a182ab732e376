"""Checkpoints of models that share or factor their weights."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stages.core.architecture.families import family_of
from stages.core.architecture.opening import blank, open_snapshot
from stages.core.architecture.weights import described
from stages.core.forms.structure import Sharing, install, keep_zeros
from stages.core.process.artifacts import read_json, read_tensors, replacing, write_json, write_tensors
from stages.core.process.errors import UserError

MODEL_TYPE = "shared_ffn"


def save(model: Any, sharing: Sharing, folder: Path) -> None:
    """Write every parameter once, and the config that says how the model is put together."""
    config = {"model_type": MODEL_TYPE, "sharing": asdict(sharing), "dense": described(model)}
    with replacing(folder) as draft:
        draft.mkdir()
        write_json(draft / "config.json", config)
        write_tensors(draft / "model.safetensors", dict(model.named_parameters()))


def load(folder: Path) -> tuple[Any, Sharing]:
    """The model that `save` wrote (float32, CPU, evaluation mode) and its sharing.

    Raises UserError unless the stored tensors are exactly the model's unique parameters.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.keys() != {"model_type", "sharing", "dense"}:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}/config.json: model_type is {found!r}, not {MODEL_TYPE!r} as stage `surgery` writes")
    stored = read_tensors(folder / "model.safetensors")
    try:
        # First without memory: a damaged config may ask for any amount of it.
        with torch.device("meta"):
            wanted = dict(_built(config)[0].named_parameters())
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything at a config that makes no sense
        raise UserError(f"{folder}/config.json describes no model: {' '.join(str(error).split())[:200]}") from error
    if {name: t.shape for name, t in stored.items()} != {name: p.shape for name, p in wanted.items()}:
        odd = sorted(stored.keys() ^ wanted.keys()) or ["(shapes differ)"]
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {', '.join(odd[:4])}")
    model, sharing = _built(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
    if sharing.pruned:
        keep_zeros(model, family_of(model.config.model_type))
    return model.eval(), sharing


def open_checkpoint(folder: Path) -> tuple[Any, Sharing]:
    """The model that `save` wrote and its sharing, or the snapshot that stage `base` wrote, which shares nothing."""
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("model_type") == MODEL_TYPE:
        return load(folder)
    return open_snapshot(folder), Sharing()


def _built(config: dict[str, Any]) -> tuple[Any, Sharing]:
    """A model with the structure that a config says, and arbitrary weights."""
    model, sharing = blank(config["dense"]), Sharing(**config["sharing"])
    install(model, family_of(model.config.model_type), sharing)
    return model, sharing
