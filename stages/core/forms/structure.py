"""Which layers of a model share their FFN, and how a stock model gets that structure.

A shared model is the stock model with two changes, which no other module's forward pass notices. The members of a group
hold the very same `weight` parameter. Where a member has a delta, its linear map is a `SharedLinear`,
W_l x = W_c x + A_l (B_l x). Two baselines have a structure too: FFN matrices that are `FactoredLinear`, and pruned
ones, whose zeros training must not fill.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stages.core.architecture.view import ModelView
from stages.core.forms.linears import FactoredLinear, SharedLinear


@dataclass(frozen=True)
class Sharing:
    """The structure of a model, as its checkpoint's config stores it.

    groups: the layers of each group, which share one FFN.
    rank: the rank of each member's delta; 0: no delta.
    biases: `shared` within a group, or each layer's `own`.
    ranks: layer, as JSON's string -> role -> rank, instead of `rank` where it names a matrix.
    factored: each matrix that `ranks` names is A B alone, without a base.
    bases: groups of layers that hold the same B in each factored matrix but `out`.
    pruned: the zeros of the FFN matrices stay zero.
    """

    groups: list[list[int]] = field(default_factory=list)
    rank: int = 0
    biases: str = "shared"
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    factored: bool = False
    bases: list[list[int]] = field(default_factory=list)
    pruned: bool = False

    def rank_of(self, layer: int, role: str) -> int:
        """The rank of one matrix's delta, or of the matrix itself where it is factored."""
        return self.ranks.get(str(layer), {}).get(role, self.rank)


def install(view: ModelView, sharing: Sharing) -> None:
    """Give a stock model the structure of `sharing`, in place. A group gets the values of its first layer."""
    for group in sharing.groups:
        owners = view.linears(group[0])
        for layer in group:
            for role, linear in view.linears(layer).items():
                linear.weight = owners[role].weight
                if sharing.biases == "shared":
                    linear.bias = owners[role].bias
                if rank := sharing.rank_of(layer, role):
                    d_out, d_in = view.matrix_shape(layer, role)
                    view.replace(layer, role, SharedLinear(linear, rank, d_in, d_out).to(linear.weight.device))
    if sharing.factored:
        for layer, ranks in sharing.ranks.items():
            linears = view.linears(int(layer))
            for role, rank in ranks.items():
                d_out, d_in = view.matrix_shape(int(layer), role)
                factored = FactoredLinear(rank, d_in, d_out, linears[role].bias).to(linears[role].weight.device)
                view.replace(int(layer), role, factored)
    for group in sharing.bases:
        for role in sharing.ranks[str(group[0])].keys() - {"out"}:
            for layer in group[1:]:
                view.linears(layer)[role].B = view.linears(group[0])[role].B


def keep_zeros(view: ModelView) -> None:
    """Let no gradient reach an entry of an FFN matrix that is zero. AdamW's decay leaves a zero as it is, too."""
    for layer in range(view.depth):
        for linear in view.linears(layer).values():
            _mask_gradient(linear.weight)


def _mask_gradient(weight: Tensor) -> None:
    def mask(gradient: Tensor) -> Tensor:
        return gradient * (weight != 0)

    weight.register_hook(mask)


def deltas(model: Any) -> Iterator[SharedLinear]:
    """Every linear map of a model that has a delta."""
    return (module for module in model.modules() if isinstance(module, SharedLinear))
