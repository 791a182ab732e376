"""Model families as data: where a model keeps its layers and the matrices of their feed-forward networks.

A family is one row, which `stages.core.architecture.view` reads. The roles of an FFN's matrices are `in` (d_model to
d_ff), `gate` (the other such matrix of a gated FFN, whose output goes through the activation function) and `out` (d_ff
to d_model). What a row does not say, such as sizes, biases, norms and tied embeddings, is read off the model itself.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stages.core.process.errors import UserError


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_types: the values of `config.model_type` that it describes.
    layers: dotted path from the model to its list of blocks; `*` stands for every stage of a model that has stages.
    ffn: dotted path from a block to its FFN; empty where the block itself holds the matrices.
    matrices: role -> dotted path from the FFN to that linear map.
    activated: the role whose output is the pre-activation, which goes through the activation function.
    activation: attribute of the FFN that holds the activation function.
    transposed: True where a weight is stored as (d_in, d_out), as in GPT-2's Conv1D.
    fused: attribute of the FFN that holds several linear maps as one -> their roles, in the order of its rows. The
        path of such a role is the attribute, a dot, and the role.
    norm_after: dotted path from a block to the norm that the FFN's output goes through before it is added to the
        residual stream; None where there is none.
    multiplier: the key of config.json with a number that the FFN's output is multiplied by before it is added.
    per_layer: the keys of config.json that hold one entry for each layer, or patterns of entries with how often each
        pattern comes.
    numbered: the key of config.json that makes layer n divide its attention scores by n + 1; None where there is none.
    queries: dotted path from a block to the linear map whose first d_model outputs are the queries.
    depth: dotted path in config.json to the number of layers, or to one number a stage.
    task: what such models are studied at, a key of `stages.core.tasks.choice.TASKS`.
    options: what a forward pass is told besides its batch.
    scale: dotted path from a block to the vector that multiplies its FFN's output; None where there is none.
    image: dotted path in config.json to the size of an image: its side, (height, width), or with channels before them.
    patch: the key of config.json with the pixels, one side, of a token of the first layer; or their number.
    architecture: how `architecture` in config.json begins, where a model type stands for a whole library of models.
    needs: packages beyond requirements.txt that such models are made with.
    prefix: how the names of tensors begin in transformers, and not in a stock checkpoint.
    """

    model_types: tuple[str, ...]
    layers: str
    ffn: str
    matrices: Mapping[str, str]
    activated: str
    activation: str
    transposed: bool = False
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norm_after: str | None = None
    multiplier: str | None = None
    per_layer: frozenset[str] = frozenset({"layer_types"})
    numbered: str | None = None
    queries: str | None = None
    depth: str = "num_hidden_layers"
    task: str = "language"
    options: Mapping[str, Any] = field(default_factory=lambda: {"use_cache": False})
    scale: str | None = None
    image: str = "image_size"
    patch: str | int = "patch_size"
    architecture: str = ""
    needs: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def gated(self) -> bool:
        """Whether another role than `in` is activated: then the FFN is linear in `in`, which may change sign."""
        return self.activated != "in"


_GPT = Family(
    model_types=(),
    layers="transformer.h",
    ffn="mlp",
    matrices={"in": "c_fc", "out": "c_proj"},
    activated="in",
    activation="act",
)
_NEOX = replace(_GPT, layers="gpt_neox.layers", matrices={"in": "dense_h_to_4h", "out": "dense_4h_to_h"})
_LLAMA = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3", "stablelm", "cohere", "gemma"),
    layers="model.layers",
    ffn="mlp",
    matrices={"gate": "gate_proj", "in": "up_proj", "out": "down_proj"},
    activated="gate",
    activation="act_fn",
)

FAMILIES = (
    replace(
        _GPT,
        model_types=("gpt2",),
        transposed=True,
        numbered="scale_attn_by_inverse_layer_idx",
        queries="attn.c_attn",
    ),
    replace(_GPT, model_types=("gpt_neo",), per_layer=frozenset({"attention_types", "attention_layers"})),
    replace(_GPT, model_types=("gptj",), matrices={"in": "fc_in", "out": "fc_out"}),
    replace(_GPT, model_types=("starcoder2",), layers="model.layers"),
    replace(_NEOX, model_types=("gpt_neox",)),
    replace(_NEOX, model_types=("bloom",), layers="transformer.h", activation="gelu_impl"),
    replace(_NEOX, model_types=("falcon",), layers="transformer.h"),
    replace(
        _GPT,
        model_types=("opt",),
        layers="model.decoder.layers",
        ffn="",
        matrices={"in": "fc1", "out": "fc2"},
        activation="activation_fn",
    ),
    replace(
        _GPT,
        model_types=("phi",),
        layers="model.layers",
        matrices={"in": "fc1", "out": "fc2"},
        activation="activation_fn",
    ),
    replace(
        _LLAMA,
        model_types=("phi3",),
        matrices={"gate": "gate_up_proj.gate", "in": "gate_up_proj.in", "out": "down_proj"},
        fused={"gate_up_proj": ("gate", "in")},
        activation="activation_fn",
    ),
    _LLAMA,
    replace(_LLAMA, model_types=("smollm3",), per_layer=frozenset({"layer_types", "no_rope_layers"})),
    replace(_LLAMA, model_types=("granite",), multiplier="residual_multiplier"),
    replace(_LLAMA, model_types=("gemma2", "gemma3_text", "olmo2"), norm_after="post_feedforward_layernorm"),
)


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`. Raises UserError, which lists the supported types, where there is none."""
    from stages.core.architecture import vision_families  # whose rows are of the class above

    every = (*FAMILIES, *vision_families.FAMILIES)
    for family in every:
        if model_type in family.model_types:
            return family
    supported = ", ".join(name for family in every for name in family.model_types)
    raise UserError(
        f"model type {model_type!r} is not supported; supported: {supported}. "
        "A family is one row in stages/core/architecture/families.py."
    )


def require(family: Family, config: Mapping[str, Any]) -> None:
    """Raise UserError where a family does not describe a config's architecture, or lacks a package to make it with."""
    named = str(config.get("architecture") or "")
    if not named.startswith(family.architecture):
        raise UserError(
            f"architecture {named!r} is not supported; of models of type {family.model_types[0]} those are whose "
            f"architecture begins with {family.architecture!r}"
        )
    for name in family.needs:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package that was built for another torch raises nearly anything
            reason = " ".join(str(error).split())[:200]
            packages = " and ".join(family.needs)
            raise UserError(f"such models need {packages}, and {name} cannot be imported: {reason}") from error
