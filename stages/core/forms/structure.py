"""Which layers of a model share their FFN, and how the model behind a view gets that structure.

A shared model is the stock model with two changes, which no other module's forward pass notices. The members of a group
hold the very same `weight` parameter. Where a member has a delta, its linear map is a `SharedLinear`,
W_l x = W_c x + A_l (B_l x). Baselines have a structure too: FFN matrices that are `FactoredLinear`, and pruned ones,
`MaskedLinear`, whose zeros no training fills.
"""

from stages.core.architecture.view import ModelView
from stages.core.forms import modeling_shared_ffn
from stages.core.forms.modeling_shared_ffn import Sharing, deltas

__all__ = ["Sharing", "deltas", "install"]


def install(view: ModelView, sharing: Sharing) -> None:
    """Give a stock model the structure of `sharing`, in place. A group gets the values of its first layer."""
    modeling_shared_ffn.install(view.model, view.paths, sharing)
