"""Model families as data: where a model keeps its layers and the matrices of their feed-forward networks.

A family is one row, which `stages.core.architecture.view` reads. The roles of an FFN's matrices are `in` (d_model to
d_ff), `gate` (the other such matrix of a gated FFN, whose output goes through the activation function) and `out` (d_ff
to d_model).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stages.core.process.errors import UserError


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_types: the values of `config.model_type` that it describes.
    layers: dotted path from the model to its list of blocks; `*` stands for every stage of a model that has stages.
    ffn: dotted path from a block to its FFN.
    matrices: role -> attribute of the FFN that holds that linear map.
    activated: the role whose output is the pre-activation, which goes through the activation function.
    transposed: True where a weight is stored as (d_in, d_out), as in GPT-2's Conv1D.
    config: size that `stages.core.architecture.shape` reads -> its key in config.json.
    biases: `qkv`, `o` (attention) and `ffn` -> whether they have biases, or the key in config.json that says so.
    norm_vectors: the number of vectors that a norm stores.
    norms: the norms of d_model in a block.
    head_norms: whether queries and keys have a norm, of the width of a head, each.
    learned_positions: whether positions have an embedding.
    tied: whether the embeddings are tied if config.json does not say.
    hidden_per_width: d_ff / d_model if config.json does not give d_ff; None where config.json must give it.
    per_layer: the keys of config.json that hold one entry for each layer.
    numbered: the key of config.json that makes layer n divide its attention scores by n + 1; None where there is none.
    queries: dotted path from a block to the linear map whose first d_model outputs are the queries.
    task: what such models are studied at, a key of `stages.core.tasks.choice.TASKS`.
    options: what a forward pass is told besides its batch.
    scale: dotted path from a block to the vector that multiplies its FFN's output; None where there is none.
    pairs: whether a block returns a pair, of which the second is not the residual stream's.
    """

    model_types: tuple[str, ...]
    layers: str
    ffn: str
    matrices: Mapping[str, str]
    activated: str
    config: Mapping[str, str]
    biases: Mapping[str, bool | str]
    norm_vectors: int
    learned_positions: bool
    tied: bool
    norms: int = 2
    head_norms: bool = False
    transposed: bool = False
    hidden_per_width: int | None = None
    per_layer: frozenset[str] = frozenset({"layer_types"})
    numbered: str | None = None
    queries: str | None = None
    task: str = "language"
    options: Mapping[str, Any] = field(default_factory=lambda: {"use_cache": False})
    scale: str | None = None
    pairs: bool = False


_LLAMA = Family(
    model_types=("llama",),
    layers="model.layers",
    ffn="mlp",
    matrices={"gate": "gate_proj", "in": "up_proj", "out": "down_proj"},
    activated="gate",
    config={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "hidden": "intermediate_size",
        "positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
        "heads": "num_attention_heads",
        "key_heads": "num_key_value_heads",
        "head_width": "head_dim",
    },
    biases={"qkv": "attention_bias", "o": "attention_bias", "ffn": "mlp_bias"},
    norm_vectors=1,
    learned_positions=False,
    tied=False,
)
_GEMMA = replace(_LLAMA, biases={"qkv": "attention_bias", "o": "attention_bias", "ffn": False}, tied=True)

FAMILIES = (
    Family(
        model_types=("gpt2",),
        layers="transformer.h",
        ffn="mlp",
        matrices={"in": "c_fc", "out": "c_proj"},
        activated="in",
        config={
            "layers": "n_layer",
            "width": "n_embd",
            "hidden": "n_inner",
            "positions": "n_positions",
            "vocabulary": "vocab_size",
            "heads": "n_head",
        },
        biases={"qkv": True, "o": True, "ffn": True},
        norm_vectors=2,
        learned_positions=True,
        tied=True,
        transposed=True,
        hidden_per_width=4,
        numbered="scale_attn_by_inverse_layer_idx",
        queries="attn.c_attn",
    ),
    _LLAMA,
    replace(_LLAMA, model_types=("mistral",), biases={"qkv": False, "o": False, "ffn": False}),
    replace(_LLAMA, model_types=("qwen2",), biases={"qkv": True, "o": False, "ffn": False}),
    replace(
        _LLAMA,
        model_types=("qwen3",),
        biases={"qkv": "attention_bias", "o": "attention_bias", "ffn": False},
        head_norms=True,
    ),
    replace(_GEMMA, model_types=("gemma",)),
    # Gemma 2 and 3 have norms after attention and after the FFN, too.
    replace(_GEMMA, model_types=("gemma2",), norms=4),
    replace(_GEMMA, model_types=("gemma3_text",), norms=4, head_norms=True),
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
