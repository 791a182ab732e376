"""A feed-forward network as one canonical value, whatever class of linear layer the model stores it in.

A canonical FFN maps names to tensors: `w_in` and `w_gate` of shape (d_ff, d_model), `w_out` (d_model, d_ff),
`b_in`, `b_gate` (d_ff,) and `b_out` (d_model,). A name is absent where the family has no such tensor. A linear map is
y = W x + b. `ModelView` reads and writes this form.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Ffn = Mapping[str, Tensor]

# The axis of each tensor that runs over the FFN's neurons; b_out has none.
NEURON_AXIS = {"w_in": 0, "w_gate": 0, "w_out": 1, "b_in": 0, "b_gate": 0}


# What changes sign with a neuron's hidden activation where the FFN is gated: act(gate) (-up) (-down) is the same.
SIGNED = ("w_in", "b_in", "w_out")


def permute(ffn: Ffn, permutation: Tensor) -> dict[str, Tensor]:
    """The FFN with neuron `permutation[k]` in position k: the same function of its input.

    permutation: int64, shape (d_ff,). An entry ~j (-1 - j) is neuron j with its sign flipped, which only a gated FFN
    can have: its rows of `in` and its column of `out` change sign. Raises ValueError where an FFN has no gate.
    """
    order, signs = unsigned(permutation)
    moved = {
        name: tensor.index_select(NEURON_AXIS[name], order) if name in NEURON_AXIS else tensor
        for name, tensor in ffn.items()
    }
    if signs is None:
        return moved
    if "w_gate" not in ffn:
        raise ValueError("a permutation flips signs of neurons of an FFN without a gate")
    for name in SIGNED:
        if name in moved:
            aligned = signs.to(moved[name])
            moved[name] = moved[name] * (aligned[:, None] if name == "w_in" else aligned)
    return moved


def unsigned(permutation: Tensor) -> tuple[Tensor, Tensor | None]:
    """The neurons of a signed permutation, int64, and their signs, +1 or -1; None where no sign is flipped."""
    flipped = permutation < 0
    if not flipped.any():
        return permutation, None
    return torch.where(flipped, ~permutation, permutation), 1 - 2 * flipped.long()
