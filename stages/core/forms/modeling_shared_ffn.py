"""Models some of whose layers share or factor the weights of their feed-forward networks (FFNs).

Import this module, and AutoModelForCausalLM (or AutoModelForImageClassification) opens a checkpoint of model type
`shared_ffn`. It needs torch and transformers only; a copy lies beside exported weights for `trust_remote_code=True`.
What opens is a subclass of the stock class of the dense model, such as LlamaForCausalLM, with two changes that no other
module's forward pass notices: layers of a group hold the very same parameters, and linear maps of FFNs may be a
`SharedLinear`, a `FactoredLinear` or a `MaskedLinear`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedConfig,
)
from transformers.pytorch_utils import Conv1D

MODEL_TYPE = "shared_ffn"
AUTO = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageClassification: MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
}


class SharedLinear(nn.Module):
    """A linear map whose base other layers hold too, plus a low-rank delta of its own.

    base(x) + A (B x) for x of shape (..., d_in), with A (d_out, rank) and B (rank, d_in), both zero at first. The base
    is a stock linear map.
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
        """||A B||_F^2 = tr(A'A BB'), computed from (rank, rank) products only."""
        return ((self.A.T @ self.A) * (self.B @ self.B.T)).sum()


class FactoredLinear(nn.Module):
    """A linear map of low rank: A (B x) + bias, with A (d_out, rank) and B (rank, d_in), both zero at first.

    bias: (d_out,), or None.
    """

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


class MaskedLinear(nn.Module):
    """A linear map that stores `kept` entries of its matrix (d_out, d_in) and one bit for each: is it stored or zero.

    values: the stored entries, row after row, shape (1, kept): a row, since optimisers decay matrices but not vectors.
    mask: the bits, eight a byte, uint8. bias: (d_out,), or None. The zeros have no gradient. Without gradients the
    matrix is laid out once and kept beside the module, so that decoding runs at dense speed and with dense memory; a
    change that torch does not count (through `.data`) is seen after the next `eval()` or `train()`.
    """

    def __init__(self, kept: int, d_in: int, d_out: int, bias: nn.Parameter | None):
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.values = nn.Parameter(torch.zeros(1, kept))
        self.register_buffer("mask", torch.zeros(-(-d_in * d_out // 8), dtype=torch.uint8))
        self.bias = bias
        self._laid_out: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._matrix(), self.bias)

    def _matrix(self) -> Tensor:
        if torch.is_grad_enabled() and self.values.requires_grad:
            self._laid_out = None  # the step that follows may change the values in place, unseen: fused AdamW does
            return self.matrix()
        state = (self.values.data_ptr(), self.values._version, self.mask._version, self.values.dtype)
        if self._laid_out is None or self._laid_out[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # later calls may want gradients to their inputs
                self._laid_out = state, self.matrix()
        return self._laid_out[1]

    def train(self, mode: bool = True) -> "MaskedLinear":
        """As of any module; what is laid out is laid out anew."""
        self._laid_out = None
        return super().train(mode)

    def matrix(self) -> Tensor:
        """The matrix, (d_out, d_in), with a gradient to `values`."""
        bits = (self.mask[:, None] >> torch.arange(8, device=self.mask.device)) & 1
        chosen = bits.flatten()[: self.d_in * self.d_out].bool().view(self.d_out, self.d_in)
        return self.values.new_zeros(self.d_out, self.d_in).masked_scatter(chosen, self.values)

    @torch.no_grad()
    def store(self, matrix: Tensor) -> None:
        """Take over a matrix, (d_out, d_in), of which at most `kept` entries are not zero; zeros fill up to that."""
        chosen = (matrix != 0).flatten()
        spare = self.values.numel() - int(chosen.sum())
        chosen[(~chosen).nonzero()[:spare, 0]] = True
        padded = functional.pad(chosen, (0, 8 * len(self.mask) - len(chosen))).view(-1, 8)
        self.mask.copy_((padded << torch.arange(8, device=chosen.device)).sum(1))
        self.values.copy_(matrix.flatten()[chosen][None])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_laid_out": None}


class FusedLinear(nn.Module):
    """Linear maps of the same input, by role, that the stock model holds as one; their outputs one after the other."""

    def __init__(self, linear: nn.Linear, roles: list[str]):
        super().__init__()
        d_out, d_in = linear.weight.shape
        options = {"bias": linear.bias is not None, "device": linear.weight.device, "dtype": linear.weight.dtype}
        for role in roles:
            self.add_module(role, nn.Linear(d_in, d_out // len(roles), **options))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)


@dataclass(frozen=True)
class Sharing:
    """The structure of a model, as its config stores it.

    groups: the layers of each group, which share one FFN.
    rank: the rank of each member's delta; 0: no delta.
    biases: `shared` within a group, or each layer's `own`.
    ranks: layer, as JSON's string -> role -> rank, instead of `rank` where it names a matrix.
    factored: each matrix that `ranks` names outside the groups is A B alone, without a base.
    bases: groups of layers that hold the same B in each factored matrix but `out`.
    kept: layer, as JSON's string -> role -> entries: the matrices stored as a mask and as many values.
    """

    groups: list[list[int]] = field(default_factory=list)
    rank: int = 0
    biases: str = "shared"
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    factored: bool = False
    bases: list[list[int]] = field(default_factory=list)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)

    def rank_of(self, layer: int, role: str) -> int:
        """The rank of one matrix's delta, or of the matrix itself where it is factored."""
        return self.ranks.get(str(layer), {}).get(role, self.rank)


def path_of(paths: str | Sequence[str], layer: int) -> str:
    """The dotted path of one layer's linear map, from one for all, with `{}` for the layer, or one for each."""
    return paths.format(layer) if isinstance(paths, str) else paths[layer]


def install(model: nn.Module, linears: Mapping[str, str | Sequence[str]], sharing: Sharing) -> None:
    """Give a stock model the structure of `sharing`, in place. A group gets the values of its first layer.

    linears: role of an FFN's linear map -> its paths, as `path_of` takes them.
    """
    for group in sharing.groups:
        for role, paths in linears.items():
            owner = model.get_submodule(path_of(paths, group[0]))
            for layer in group:
                linear = model.get_submodule(path_of(paths, layer))
                linear.weight = owner.weight
                if sharing.biases == "shared":
                    linear.bias = owner.bias
                if rank := sharing.rank_of(layer, role):
                    delta = SharedLinear(linear, rank, *_sizes(linear)).to(linear.weight.device)
                    model.set_submodule(path_of(paths, layer), delta)
    grouped = {str(layer) for group in sharing.groups for layer in group}
    alone = {layer: roles for layer, roles in sharing.ranks.items() if layer not in grouped}
    thin = [(FactoredLinear, alone)] if sharing.factored else []
    for form, sizes in [*thin, (MaskedLinear, sharing.kept)]:
        for layer, roles in sizes.items():
            for role, size in roles.items():
                path = path_of(linears[role], int(layer))
                linear = model.get_submodule(path)
                model.set_submodule(path, form(size, *_sizes(linear), linear.bias).to(linear.weight.device))
    for group in sharing.bases:
        for role in sharing.ranks[str(group[0])].keys() - {"out"}:
            owner, *others = (model.get_submodule(path_of(linears[role], layer)) for layer in group)
            for other in others:
                other.B = owner.B


def split(model: nn.Module, linears: Mapping[str, str | Sequence[str]]) -> None:
    """Put a blank `FusedLinear` in the place of each stock linear map that several roles of `linears` lie in."""
    parts: dict[str, list[str]] = {}
    for paths in linears.values():
        if isinstance(paths, str):
            parent, _, name = paths.rpartition(".")
            parts.setdefault(parent, []).append(name)
    for parent, roles in parts.items():
        for layer in range(model.config.num_hidden_layers):
            path = parent.format(layer)
            if isinstance(linear := model.get_submodule(path), nn.Linear):
                model.set_submodule(path, FusedLinear(linear, roles))


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a stock linear map."""
    first, second = linear.weight.shape
    return (first, second) if isinstance(linear, Conv1D) else (second, first)


def deltas(model: nn.Module) -> Iterator[SharedLinear]:
    """Every linear map of a model that has a delta."""
    return (module for module in model.modules() if isinstance(module, SharedLinear))


class SharedFfnConfig(PreTrainedConfig):
    """The config of a checkpoint: the stock config of the `dense` model, the `sharing`, and `linears` as of `install`.

    A stock class that is asked by name to open it must not take that config for its own and draw the FFNs that are not
    there. So the dense model's type stands beside its config, as `dense_type`, and sizes are null beside it, which
    stock configs refuse.

    `from_dict`, and so `from_pretrained`, gives an instance of a subclass of the dense model's own config class, with
    the attributes `sharing` and `linears`. Its `to_dict` and its model type are the dense model's; its JSON, as
    `save_pretrained` writes it, is a checkpoint's again.
    """

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        own = {"sharing": asdict(Sharing(**config_dict["sharing"])), "linears": dict(config_dict["linears"])}
        dense = config_dict["dense"]
        classes = _classes(config_dict["dense_type"], dense.get("architectures") or ())
        return classes[0].from_dict({**dense, **own}, **kwargs)


class _DenseConfig:
    """What is added to the config class of a dense model."""

    dense_class: str  # of the stock model
    auto_class: str  # that opens it

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """For tools that ask the class of a config that they have, as PEFT does."""
        return SharedFfnConfig.from_pretrained(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        own = ("sharing", "linears", "auto_map")
        return {key: value for key, value in super().to_dict().items() if key not in own}

    def to_json_string(self, use_diff: bool = True) -> str:
        dense = json.loads(super().to_json_string(use_diff)) | {"architectures": [self.dense_class]}
        file, classes = __name__.rpartition(".")[2], {"AutoConfig": SharedFfnConfig, self.auto_class: SharedFfnModel}
        whole = {
            "model_type": MODEL_TYPE,
            "vocab_size": None,
            "hidden_size": None,
            "architectures": [SharedFfnModel.__name__],
            "auto_map": {name: f"{file}.{of.__name__}" for name, of in classes.items()},
            "linears": self.linears,
            "sharing": self.sharing,
            "dense_type": dense.pop("model_type"),
            "dense": dense,
        }
        return json.dumps(whole, indent=2, sort_keys=True) + "\n"


class SharedFfnModel:
    """What is added to the stock class of a dense model. `from_pretrained` of this class itself finds the stock one."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        if cls is SharedFfnModel:
            if config is None:
                reach = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
                config = SharedFfnConfig.from_pretrained(folder, **{key: kwargs[key] for key in reach if key in kwargs})
            return model_class(config).from_pretrained(folder, *args, config=config, **kwargs)
        return super().from_pretrained(folder, *args, config=config, **kwargs)

    def post_init(self) -> None:
        """The stock class calls this when its modules are there."""
        split(self, self.config.linears)
        install(self, self.config.linears, Sharing(**self.config.sharing))
        first: dict[int, str] = {}
        names = [(name, first.setdefault(id(p), name)) for name, p in self.named_parameters(remove_duplicate=False)]
        self.shared_keys = {name: source for name, source in names if name != source}
        self._tied_weights_keys = (self._tied_weights_keys or {}) | self.shared_keys
        super().post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Those of the stock class, which are none where the embeddings are untied, and what layers share."""
        return super().get_expanded_tied_weights_keys(all_submodels) | self.shared_keys

    def _adjust_bias(self, output: nn.Module, source: Any) -> None:
        """Called for whatever is tied. It would cut a Conv1D's bias, whose weight is stored as (d_in, d_out)."""
        if not isinstance(output, Conv1D):
            super()._adjust_bias(output, source)


def _classes(model_type: str, architectures: Sequence[str]) -> tuple[type, type]:
    """The classes of config and model for dense models of a type.

    architectures: names of stock classes, which choose one where a type has several, as DeiT has.
    """
    dense = CONFIG_MAPPING[model_type]
    auto, known = next((auto, mapping[dense]) for auto, mapping in AUTO.items() if dense in mapping)
    several = known if isinstance(known, (tuple, list)) else [known]
    return _made(dense, next((each for each in several if each.__name__ in architectures), several[0]), auto)


@cache
def _made(dense: type, stock: type, auto: type) -> tuple[type, type]:
    """The classes made from a stock config and a stock model, registered with the auto class that opens them."""
    names = {"__module__": __name__, "dense_class": stock.__name__, "auto_class": auto.__name__}
    config = type(f"SharedFfn{dense.__name__}", (_DenseConfig, dense), names)
    # With an `_auto_class`, `save_pretrained` copies this file beside the weights.
    names = {"__module__": __name__, "config_class": config, "_auto_class": auto.__name__}
    model = type(f"SharedFfn{stock.__name__}", (SharedFfnModel, stock), names)
    auto.register(config, model, exist_ok=True)
    return config, model


def model_class(config: PreTrainedConfig) -> type:
    """The class of the models whose config `SharedFfnConfig.from_dict` made."""
    return _classes(config.model_type, (config.dense_class,))[1]


# A copy that came with a checkpoint serves that checkpoint alone.
if not __name__.startswith("transformers_modules."):
    AutoConfig.register(MODEL_TYPE, SharedFfnConfig, exist_ok=True)
