"""The way back from shared or factored weights to a stock model."""

import copy
from typing import Any

import torch
from torch import nn

from stages.core.architecture.families import family_of
from stages.core.architecture.opening import blank
from stages.core.architecture.weights import described
from stages.core.forms.linears import FactoredLinear, SharedLinear


def to_dense(model: Any) -> Any:
    """A stock model that computes the same: ties broken, products A B folded into the weights in float64."""
    family, plain = family_of(model.config.model_type), blank(described(model))
    folded = copy.deepcopy(model)
    for block in family.blocks(folded):
        block_ffn = getattr(block, family.ffn)
        for name in family.matrices.values():
            linear = getattr(block_ffn, name)
            if isinstance(linear, (SharedLinear, FactoredLinear)):
                weight = linear.A.double() @ linear.B.double()
                weight = weight.T if family.transposed else weight
                stock = nn.Module()  # only its parameters are asked for
                if isinstance(linear, SharedLinear):
                    stock, weight = linear.base, weight + linear.base.weight.double()
                else:
                    stock.bias = linear.bias
                stock.weight = nn.Parameter(weight.to(linear.A.dtype))
                setattr(block_ffn, name, stock)
    values = dict(folded.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(values[name])
    return plain.eval()
