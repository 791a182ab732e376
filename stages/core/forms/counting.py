"""How many parameters a model stores."""

from torch import nn

from stages.core.architecture.targets import mask_size
from stages.core.architecture.view import ModelView
from stages.core.forms.modeling_shared_ffn import FactoredLinear, MaskedLinear, SharedLinear


def count(view: ModelView) -> dict[str, int]:
    """Parameters by unique storage.

    parameters: all that the model stores. ffn_parameters: those of FFNs. dense_parameters: all of the dense model of
    the same depth. A pruned matrix stores its entries that are not zero and a mask of one bit an entry.
    """
    ffns = {id(p): p for layer in range(view.depth) for p in view.parameters(layer)}
    matrices = [linear for layer in range(view.depth) for linear in view.linears(layer).values()]
    dense_ffn = sum(_dense_size(linear) for linear in matrices)
    outside = sum(parameter.numel() for parameter in view.model.parameters() if id(parameter) not in ffns)
    masks = sum(mask_size(linear.d_in * linear.d_out) for linear in matrices if isinstance(linear, MaskedLinear))
    stored = sum(parameter.numel() for parameter in ffns.values()) + masks
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
    if isinstance(linear, MaskedLinear):
        return linear.d_in * linear.d_out + (0 if linear.bias is None else linear.bias.numel())
    return sum(parameter.numel() for parameter in linear.parameters())
