"""How many parameters a model stores."""

from typing import Any

from torch import nn

from stages.core.architecture.families import family_of
from stages.core.forms.linears import FactoredLinear, SharedLinear
from stages.core.forms.structure import Sharing


def count(model: Any, sharing: Sharing = Sharing()) -> dict[str, int]:
    """Parameters by unique storage: all of them, those of FFNs, and those of the dense model of this depth.

    Of pruned matrices only the entries that are not zero count as stored (where they stand is not counted).
    """
    family = family_of(model.config.model_type)
    blocks = family.blocks(model)
    ffns = {id(p): p for block in blocks for p in getattr(block, family.ffn).parameters()}
    matrices = [linear for layer in range(len(blocks)) for linear in family.linears(model, layer).values()]
    dense_ffn = sum(_dense_size(linear) for linear in matrices)
    around = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in ffns)
    zeros = sum((linear.weight == 0).sum().item() for linear in matrices) if sharing.pruned else 0
    stored = sum(parameter.numel() for parameter in ffns.values()) - zeros
    return {
        "parameters": around + stored,
        "dense_parameters": around + dense_ffn,
        "ffn_parameters": stored,
    }


def _dense_size(linear: nn.Module) -> int:
    """What the stock linear map stores that computes the same."""
    if isinstance(linear, SharedLinear):
        return _dense_size(linear.base)
    if isinstance(linear, FactoredLinear):
        return len(linear.A) * linear.B.shape[1] + (0 if linear.bias is None else linear.bias.numel())
    return sum(parameter.numel() for parameter in linear.parameters())
