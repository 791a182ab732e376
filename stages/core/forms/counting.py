"""How many parameters a model stores."""

from torch import nn

from stages.core.architecture.view import ModelView
from stages.core.forms.modeling_shared_ffn import FactoredLinear, SharedLinear, Sharing


def count(view: ModelView, sharing: Sharing = Sharing()) -> dict[str, int]:
    """Parameters by unique storage.

    parameters: all that the model stores. ffn_parameters: those of FFNs. dense_parameters: all of the dense model of
    the same depth. Of a pruned matrix only the entries that are not zero count as stored, without their indices.
    """
    ffns = {id(p): p for layer in range(view.depth) for p in view.ffn(layer).parameters()}
    matrices = [linear for layer in range(view.depth) for linear in view.linears(layer).values()]
    dense_ffn = sum(_dense_size(linear) for linear in matrices)
    outside = sum(parameter.numel() for parameter in view.model.parameters() if id(parameter) not in ffns)
    zeros = sum((linear.weight == 0).sum().item() for linear in matrices) if sharing.pruned else 0
    stored = sum(parameter.numel() for parameter in ffns.values()) - zeros
    return {
        "parameters": outside + stored,
        "dense_parameters": outside + dense_ffn,
        "ffn_parameters": stored,
    }


def _dense_size(linear: nn.Module) -> int:
    """The parameters of the stock linear map in the place of this one."""
    if isinstance(linear, SharedLinear):
        return _dense_size(linear.base)
    if isinstance(linear, FactoredLinear):
        return len(linear.A) * linear.B.shape[1] + (0 if linear.bias is None else linear.bias.numel())
    return sum(parameter.numel() for parameter in linear.parameters())
