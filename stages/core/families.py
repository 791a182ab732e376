"""Model families as data: where a decoder keeps its layers and the matrices of its feed-forward network.

A family is one row. Its roles are `in` (hidden from residual), `gate` (the second such matrix of a gated
FFN, whose output goes through the activation function) and `out` (residual from hidden).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UserError


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_types: values of `config.model_type` that it describes.
    layers: dotted path from the model to its list of blocks.
    ffn: attribute of a block that holds the FFN.
    matrices: role -> attribute of the FFN that holds that linear map.
    activated: the role whose output is the pre-activation (goes through the activation function).
    transposed: True where a weight is stored (d_in, d_out), as in GPT-2's Conv1D.
    """

    model_types: tuple[str, ...]
    layers: str
    ffn: str
    matrices: Mapping[str, str]
    activated: str
    transposed: bool = False

    def blocks(self, model: Any) -> Any:
        """The model's list of blocks."""
        return model.get_submodule(self.layers)

    def linears(self, model: Any, layer: int) -> dict[str, Any]:
        """Role -> linear module of one layer's FFN."""
        ffn = getattr(self.blocks(model)[layer], self.ffn)
        return {role: getattr(ffn, name) for role, name in self.matrices.items()}


FAMILIES = (
    Family(
        model_types=("gpt2",),
        layers="transformer.h",
        ffn="mlp",
        matrices={"in": "c_fc", "out": "c_proj"},
        activated="in",
        transposed=True,
    ),
    Family(
        model_types=("llama", "mistral", "qwen2"),
        layers="model.layers",
        ffn="mlp",
        matrices={"gate": "gate_proj", "in": "up_proj", "out": "down_proj"},
        activated="gate",
    ),
)


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`; raises UserError with the supported ones otherwise."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UserError(
        f"model type {model_type!r} is not supported; supported: {known}. "
        "A family is one row in stages/core/families.py."
    )
