"""Models whose layers share FFN weights: structure, saving and loading, counting, and the way back to dense.

A shared model is the stock model with two changes that no forward pass of another module notices: members of
a group hold the very same `weight` parameter, and where a delta is wanted a linear map is wrapped as
W_l x = W_c x + A_l (B_l x). Two kinds of baseline are saved the same way: FFN matrices that are a product A B
alone, and sparse ones, whose zeros no training may fill. On disk every parameter is stored once, beside a config
of our own model type that says how they belong together, so that no stock class opens it by halves.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.architecture.families import Family, family_of
from stages.core.architecture.opening import blank, open_snapshot
from stages.core.process.artifacts import read_json, read_tensors, replacing, write_json, write_tensors
from stages.core.process.errors import UserError

MODEL_TYPE = "shared_ffn"


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


class SharedLinear(nn.Module):
    """A linear map with a base that other layers hold too, plus a low-rank delta of its own.

    Computes base(x) + A (B x) for x of shape (..., d_in), with A (d_out, rank) and B (rank, d_in).
    """

    def __init__(self, base: nn.Module, rank: int, d_in: int, d_out: int):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.zeros(d_out, rank))
        self.B = nn.Parameter(torch.zeros(rank, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + functional.linear(functional.linear(x, self.B), self.A)

    def delta(self) -> Tensor:
        """A B, shape (d_out, d_in)."""
        return self.A @ self.B

    def squared_norm(self) -> Tensor:
        """The squared Frobenius norm of A B, from r x r products only: tr(A'A BB')."""
        return ((self.A.T @ self.A) * (self.B @ self.B.T)).sum()


class FactoredLinear(nn.Module):
    """A linear map of low rank: A (B x) + bias, with A (d_out, rank) and B (rank, d_in); bias may be None."""

    def __init__(self, rank: int, d_in: int, d_out: int, bias: nn.Parameter | None):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(d_out, rank))
        self.B = nn.Parameter(torch.zeros(rank, d_in))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.B), self.A, self.bias)

    def delta(self) -> Tensor:
        """A B, shape (d_out, d_in)."""
        return self.A @ self.B


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
                    setattr(block_ffn, family.matrices[role], SharedLinear(linear, rank, d_in, d_out))
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


def save(model: Any, sharing: Sharing, folder: Path) -> None:
    """Write every parameter once, and the config that says how the model is put together."""
    config = {"model_type": MODEL_TYPE, "sharing": asdict(sharing), "dense": model.config.to_dict()}
    with replacing(folder) as draft:
        draft.mkdir()
        write_json(draft / "config.json", config)
        write_tensors(draft / "model.safetensors", dict(model.named_parameters()))


def load(folder: Path) -> tuple[Any, Sharing]:
    """The model that `save` wrote (float32, CPU, evaluation mode) and its sharing.

    Raises UserError unless the stored tensors are exactly the model's unique parameters.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.keys() != {"model_type", "sharing", "dense"}:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}/config.json: model_type is {found!r}, not {MODEL_TYPE!r} as stage `surgery` writes")
    stored = read_tensors(folder / "model.safetensors")
    try:
        # First without memory: a damaged config may ask for any amount of it.
        with torch.device("meta"):
            wanted = dict(_built(config)[0].named_parameters())
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly anything at a config that makes no sense
        raise UserError(f"{folder}/config.json describes no model: {' '.join(str(error).split())[:200]}") from error
    if {name: t.shape for name, t in stored.items()} != {name: p.shape for name, p in wanted.items()}:
        odd = sorted(stored.keys() ^ wanted.keys()) or ["(shapes differ)"]
        raise UserError(f"{folder}/model.safetensors does not fit its config.json: {', '.join(odd[:4])}")
    model, sharing = _built(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
    if sharing.pruned:
        keep_zeros(model, family_of(model.config.model_type))
    return model.eval(), sharing


def open_checkpoint(folder: Path) -> tuple[Any, Sharing]:
    """The model that `save` wrote and its sharing, or the snapshot that stage `base` wrote, which shares nothing."""
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("model_type") == MODEL_TYPE:
        return load(folder)
    return open_snapshot(folder), Sharing()


def _built(config: dict[str, Any]) -> tuple[Any, Sharing]:
    """A model with the structure that a config says, and arbitrary weights."""
    model, sharing = blank(config["dense"]), Sharing(**config["sharing"])
    install(model, family_of(model.config.model_type), sharing)
    return model, sharing


def dense(model: Any) -> Any:
    """A stock model that computes the same: ties broken, products A B folded into the weights in float64."""
    family, plain = family_of(model.config.model_type), blank(model.config.to_dict())
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
