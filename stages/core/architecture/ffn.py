"""A feed-forward network as one canonical value, whatever class of linear layer the model stores it in.

A canonical FFN maps names to tensors: `w_in` and `w_gate` of shape (d_ff, d_model), `w_out` (d_model, d_ff),
`b_in`, `b_gate` (d_ff,) and `b_out` (d_model,). What a family lacks is absent. In this convention y = W x + b,
and this is the only module that knows that GPT-2's Conv1D stores W transposed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.families import Family

# The axis of each tensor that runs over the FFN's neurons; b_out has none.
NEURON_AXIS = {"w_in": 0, "w_gate": 0, "w_out": 1, "b_in": 0, "b_gate": 0}


def read(model: Any, family: Family, layer: int) -> dict[str, Tensor]:
    """A copy of one layer's FFN in canonical form."""
    ffn = {}
    for role, linear in family.linears(model, layer).items():
        weight = linear.weight.detach()
        ffn[f"w_{role}"] = (weight.T if family.transposed else weight).clone()
        if linear.bias is not None:
            ffn[f"b_{role}"] = linear.bias.detach().clone()
    return ffn


@torch.no_grad()
def write(model: Any, family: Family, layer: int, ffn: Mapping[str, Tensor]) -> None:
    """Copy a canonical FFN into one layer; the inverse of `read`."""
    for role, linear in family.linears(model, layer).items():
        weight = ffn[f"w_{role}"]
        linear.weight.copy_(weight.T if family.transposed else weight)
        if linear.bias is not None:
            linear.bias.copy_(ffn[f"b_{role}"])


def permute(ffn: Mapping[str, Tensor], permutation: Tensor) -> dict[str, Tensor]:
    """The FFN with neuron `permutation[k]` in place k (int64, shape (d_ff,)): the same function of its input."""
    return {
        name: tensor.index_select(NEURON_AXIS[name], permutation) if name in NEURON_AXIS else tensor
        for name, tensor in ffn.items()
    }


def width(model: Any, family: Family) -> int:
    """The number of neurons, d_ff, of the first layer's FFN."""
    return family.linears(model, 0)["in"].weight.shape[1 if family.transposed else 0]
