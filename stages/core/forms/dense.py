"""The way back from shared or factored weights to a stock model."""

from typing import Any

import torch
from torch import nn

from stages.core.architecture.opening import blank
from stages.core.architecture.view import ModelView, stored
from stages.core.architecture.weights import described
from stages.core.forms.modeling_shared_ffn import FactoredLinear, MaskedLinear, SharedLinear


def to_dense(view: ModelView) -> Any:
    """A stock model that computes the same: no weight is shared, and A B is added to the base in float64."""
    dense, folded = blank(described(view.model)), view.copy()
    for layer in range(folded.depth):
        for role, linear in folded.linears(layer).items():
            if isinstance(linear, (SharedLinear, FactoredLinear, MaskedLinear)):
                folded.replace(layer, role, _folded(folded, linear))
    values = folded.fuse(dict(folded.model.named_parameters(remove_duplicate=False)) | folded.tensors())
    with torch.no_grad():
        for name, tensor in stored(dense).items():
            tensor.copy_(values[name])
    return dense.eval()


def _folded(view: ModelView, linear: SharedLinear | FactoredLinear | MaskedLinear) -> nn.Module:
    """A module with the stock `weight` and `bias` of a shared, factored or masked map; it has no forward pass."""
    if isinstance(linear, MaskedLinear):
        stock = nn.Module()
        stock.weight, stock.bias = nn.Parameter(view.canonical(linear.matrix().detach()).clone()), linear.bias
        return stock
    weight = view.canonical(linear.A.double() @ linear.B.double())
    if isinstance(linear, SharedLinear):
        stock, weight = linear.base, weight + linear.base.weight.double()
    else:
        stock = nn.Module()
        stock.bias = linear.bias
    stock.weight = nn.Parameter(weight.to(linear.A.dtype))
    return stock
