"""A feed-forward network as one canonical value, whatever class of linear layer the model stores it in.

A canonical FFN maps names to tensors: `w_in` and `w_gate` of shape (d_ff, d_model), `w_out` (d_model, d_ff),
`b_in`, `b_gate` (d_ff,) and `b_out` (d_model,). A name is absent where the family has no such tensor. A linear map is
y = W x + b. `ModelView` reads and writes this form.
"""

from collections.abc import Mapping

from torch import Tensor

Ffn = Mapping[str, Tensor]

# The axis of each tensor that runs over the FFN's neurons; b_out has none.
NEURON_AXIS = {"w_in": 0, "w_gate": 0, "w_out": 1, "b_in": 0, "b_gate": 0}


def permute(ffn: Ffn, permutation: Tensor) -> dict[str, Tensor]:
    """The FFN with neuron `permutation[k]` in position k: the same function of its input.

    permutation: int64, shape (d_ff,).
    """
    return {
        name: tensor.index_select(NEURON_AXIS[name], permutation) if name in NEURON_AXIS else tensor
        for name, tensor in ffn.items()
    }
