"""Which layers of a model share their FFN, and how a stock model gets that structure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stages.core.architecture.families import Family
from stages.core.forms.linears import FactoredLinear, SharedLinear


@dataclass(frozen=True)
class Sharing:
    """Which layers share an FFN, the rank of each member's delta (0: none), and whether biases are shared too.

    `ranks` (layer, as JSON's string -> role -> rank) has its say over `rank` where it names a matrix.
    factored: each matrix that `ranks` names is A B alone, with no base. pruned: zeros of FFN matrices stay zero.
    """

    groups: list[list[int]] = field(default_factory=list)
    rank: int = 0
    biases: str = "shared"
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    factored: bool = False
    pruned: bool = False

    def rank_of(self, layer: int, role: str) -> int:
        """The rank of one matrix's delta."""
        return self.ranks.get(str(layer), {}).get(role, self.rank)


def install(model: Any, family: Family, sharing: Sharing) -> None:
    """Give a dense model the structure of `sharing`, in place; each group keeps its first layer's values."""
    for group in sharing.groups:
        owners = family.linears(model, group[0])
        for layer in group:
            block_ffn = getattr(family.blocks(model)[layer], family.ffn)
            for role, linear in family.linears(model, layer).items():
                linear.weight = owners[role].weight
                if sharing.biases == "shared":
                    linear.bias = owners[role].bias
                if rank := sharing.rank_of(layer, role):
                    d_out, d_in = _shape(family, linear)
                    changed = SharedLinear(linear, rank, d_in, d_out).to(linear.weight.device)
                    setattr(block_ffn, family.matrices[role], changed)
    if sharing.factored:
        for layer, ranks in sharing.ranks.items():
            linears = family.linears(model, int(layer))
            for role, rank in ranks.items():
                d_out, d_in = _shape(family, linears[role])
                thin = FactoredLinear(rank, d_in, d_out, linears[role].bias).to(linears[role].weight.device)
                setattr(getattr(family.blocks(model)[int(layer)], family.ffn), family.matrices[role], thin)


def _shape(family: Family, linear: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a stock linear map."""
    return tuple(linear.weight.shape[:: -1 if family.transposed else 1])


def keep_zeros(model: Any, family: Family) -> None:
    """No gradient reaches an entry of an FFN matrix that is zero (AdamW's decay leaves zero at zero, too)."""
    for layer in range(len(family.blocks(model))):
        for linear in family.linears(model, layer).values():
            linear.weight.register_hook(lambda gradient, weight=linear.weight: gradient * (weight != 0))


def deltas(model: Any) -> Iterator[SharedLinear]:
    """Every linear map with a delta."""
    return (module for module in model.modules() if isinstance(module, SharedLinear))
