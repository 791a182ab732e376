"""Model families as data: where a decoder keeps its layers and the matrices of its feed-forward network.

A family is one row. Its roles are `in` (hidden from residual), `gate` (the second such matrix of a gated
FFN, whose output goes through the activation function) and `out` (residual from hidden).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stages.core.process.errors import UserError


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_types: values of `config.model_type` that it describes.
    layers: dotted path from the model to its list of blocks.
    ffn: attribute of a block that holds the FFN.
    matrices: role -> attribute of the FFN that holds that linear map.
    activated: the role whose output is the pre-activation (goes through the activation function).
    transposed: True where a weight is stored (d_in, d_out), as in GPT-2's Conv1D.
    config: what `stages.core.architecture.shape` asks for -> attribute of config.json.
    biases: of the attention's `qkv` and `o` and of the `ffn`: whether they are there, or the attribute that says so.
    norm_vectors: how many vectors a norm stores.
    learned_positions: whether positions have an embedding.
    tied: whether the embeddings are tied where config.json does not say.
    hidden_per_width: FFN neurons for each entry of the residual where config.json does not say; None: it has to.
    per_layer: attributes of config.json that hold one entry a layer. Any other list may only happen to be as long.
    numbered: the attribute of config.json that has layer n divide its attention scores by n + 1, if there is one.
    queries: path within a block to the linear map whose first outputs, as many as the residual has, are its queries.
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
    transposed: bool = False
    hidden_per_width: int | None = None
    per_layer: frozenset[str] = frozenset({"layer_types"})
    numbered: str | None = None
    queries: str | None = None

    def blocks(self, model: Any) -> Any:
        """The model's list of blocks."""
        return model.get_submodule(self.layers)

    def linears(self, model: Any, layer: int) -> dict[str, Any]:
        """Role -> linear module of one layer's FFN."""
        ffn = getattr(self.blocks(model)[layer], self.ffn)
        return {role: getattr(ffn, name) for role, name in self.matrices.items()}

    def divide_scores(self, block: Any, divisor: float) -> None:
        """Have a block divide its attention scores, by what its queries are made with."""
        linear = block.get_submodule(self.queries)
        weight = linear.weight if self.transposed else linear.weight.T
        weight[:, : weight.shape[0]] /= divisor
        if linear.bias is not None:
            linear.bias[: weight.shape[0]] /= divisor


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
)


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`; raises UserError with the supported ones otherwise."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UserError(
        f"model type {model_type!r} is not supported; supported: {known}. "
        "A family is one row in stages/core/architecture/families.py."
    )
