"""The one view of a model: its family, its shape, its layers, and each layer's FFN in canonical form.

Code that works on layers takes a `ModelView`. Only this module knows how a family stores its blocks and matrices. Code
that only runs a model, such as an evaluation, takes the model itself.
"""

import copy
from collections.abc import Collection, Mapping
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.architecture.families import family_of
from stages.core.architecture.ffn import Ffn
from stages.core.architecture.fused import FusedLinear
from stages.core.architecture.shape import Shape, of_model


class ModelView:
    """A model of transformers with its layers as one flat list.

    model: the model. Its linear maps may be stock ones or those of stages.core.forms.
    family: its row in stages.core.architecture.families.
    names: the dotted path of each block within the model, in the order of a forward pass.
    blocks: the blocks themselves.
    stacks: (first layer, number of layers) of every stage; most models have one.

    Linear maps that the stock model holds as one are apart from now on (see stages.core.architecture.fused). `fuse`
    gives their tensors under the stock names. Raises UserError where the model is of no supported family.
    """

    def __init__(self, model: Any):
        self.model = model
        self.family = family_of(model.config.model_type)
        self._stages = _paths(model, self.family.layers)
        found = [self._within(path) for path in self._stages]
        self.names = [name for names in found for name in names]
        self.blocks = [model.get_submodule(name) for name in self.names]
        starts = accumulate([0, *map(len, found)])
        self.stacks = [(first, len(names)) for first, names in zip(starts, found) if names]
        for layer in range(self.depth):
            for attribute, roles in self.family.fused.items():
                linear = getattr(self.ffn(layer), attribute)
                if isinstance(linear, nn.Linear):
                    setattr(self.ffn(layer), attribute, FusedLinear(linear, roles))

    def _within(self, path: str) -> list[str]:
        """The names of the blocks of a stack that have an FFN."""
        blocks = self.model.get_submodule(path).named_children()
        return [f"{path}.{name}" for name, block in blocks if not self.family.ffn or hasattr(block, self.family.ffn)]

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.blocks)

    @property
    def borders(self) -> list[int]:
        """The first layer of every stage but the first. Layers share only within a stage."""
        return [first for first, _ in self.stacks[1:]]

    def depths(self, kept: Collection[int]) -> list[int]:
        """The number of blocks of every stage with only these layers, and all blocks that have no FFN."""
        left = set(self.names) - {self.names[layer] for layer in kept}
        blocks = {path: [name for name, _ in self.model.get_submodule(path).named_children()] for path in self._stages}
        return [sum(f"{path}.{name}" not in left for name in names) for path, names in blocks.items()]

    @property
    def device(self) -> torch.device:
        """Where the model's parameters lie."""
        return next(self.model.parameters()).device

    @cached_property
    def shape(self) -> Shape:
        """The model's sizes by its config, those of the dense model where weights are shared or factored."""
        return of_model(self.model)

    @property
    def roles(self) -> list[str]:
        """The roles of an FFN's linear maps, such as `in`, `gate` and `out`."""
        return list(self.family.matrices)

    @property
    def paths(self) -> dict[str, str | list[str]]:
        """Role -> dotted path of that linear map of every layer's FFN, with `{}` for the number of the layer.

        Where numbers begin anew in every stage, or the config has no number of layers: a path for each layer.
        """

        def path(*parts: str) -> str:
            return ".".join(filter(None, parts))

        numbered = "*" not in self.family.layers and hasattr(self.model.config, "num_hidden_layers")
        blocks = [path(self.family.layers, "{}")] if numbered else self.names
        paths = {
            role: [path(block, self.family.ffn, name) for block in blocks]
            for role, name in self.family.matrices.items()
        }
        return paths if blocks is self.names else {role: each[0] for role, each in paths.items()}

    def ffn(self, layer: int) -> nn.Module:
        """The module of a layer that holds its FFN's linear maps; it may hold more."""
        return self.blocks[layer].get_submodule(self.family.ffn)

    def linears(self, layer: int) -> dict[str, nn.Module]:
        """Role -> linear map of a layer's FFN."""
        ffn = self.ffn(layer)
        return {role: ffn.get_submodule(path) for role, path in self.family.matrices.items()}

    def replace(self, layer: int, role: str, linear: nn.Module) -> None:
        """Put another linear map in the place of one of a layer's FFN."""
        self.ffn(layer).set_submodule(self.family.matrices[role], linear)

    def parameters(self, layer: int) -> list[nn.Parameter]:
        """The parameters of a layer's FFN."""
        return [parameter for linear in self.linears(layer).values() for parameter in linear.parameters()]

    def compute(self, layer: int, x: Tensor) -> Tensor:
        """The output of a layer's FFN for x, (..., d_model): what its matrix `out` gives, before any norm."""
        linears = self.linears(layer)
        hidden = getattr(self.ffn(layer), self.family.activation)(linears[self.family.activated](x))
        for role, linear in linears.items():
            if role not in ("out", self.family.activated):
                hidden = hidden * linear(x)
        return linears["out"](hidden)

    def norm_after(self, layer: int) -> nn.Module | None:
        """The norm between a layer's FFN and the residual stream, None where the output is added as it is."""
        path = self.family.norm_after
        return None if path is None else self.blocks[layer].get_submodule(path)

    @torch.no_grad()
    def scale_norm(self, layer: int, factor: float) -> None:
        """Multiply what the norm after a layer's FFN gives by a number, in place."""
        norm = self.norm_after(layer)
        # Gemma's norms multiply by 1 + weight.
        offset = (norm(torch.ones_like(norm.weight)) - norm.weight).mean().round()
        norm.weight.copy_(factor * (norm.weight + offset) - offset)

    def canonical(self, weight: Tensor) -> Tensor:
        """A stored weight as (d_out, d_in), or the other way round: GPT-2's Conv1D stores (d_in, d_out). No copy."""
        return weight.T if self.family.transposed else weight

    def matrix_shape(self, layer: int, role: str) -> tuple[int, int]:
        """(d_out, d_in) of a stock linear map of a layer's FFN."""
        return tuple(self.canonical(self.linears(layer)[role].weight).shape)

    def width(self, layer: int) -> int:
        """d_model of a layer: the entries of its residual stream."""
        return self.matrix_shape(layer, "in")[1]

    def neurons(self, layer: int) -> int:
        """d_ff of a layer: the neurons of its FFN."""
        return self.matrix_shape(layer, "in")[0]

    def read(self, layer: int) -> Ffn:
        """A copy of a layer's FFN in canonical form (see stages.core.architecture.ffn)."""
        ffn = {}
        for role, linear in self.linears(layer).items():
            ffn[f"w_{role}"] = self.canonical(linear.weight.detach()).clone()
            if linear.bias is not None:
                ffn[f"b_{role}"] = linear.bias.detach().clone()
        return ffn

    def read_double(self, layer: int) -> Ffn:
        """`read` in float64, in which all fits are computed."""
        return {name: tensor.double() for name, tensor in self.read(layer).items()}

    @torch.no_grad()
    def write(self, layer: int, ffn: Ffn) -> None:
        """Copy a canonical FFN into a layer, in place; the inverse of `read`."""
        for role, linear in self.linears(layer).items():
            linear.weight.copy_(self.canonical(ffn[f"w_{role}"]))
            if linear.bias is not None:
                linear.bias.copy_(ffn[f"b_{role}"])

    @torch.no_grad()
    def divide_scores(self, layer: int, divisor: float) -> None:
        """Divide a layer's attention scores, in place, by way of the weights that make its queries."""
        linear, width = self.blocks[layer].get_submodule(self.family.queries), self.width(layer)
        self.canonical(linear.weight)[:width] /= divisor
        if linear.bias is not None:
            linear.bias[:width] /= divisor

    def scale(self, layer: int) -> Tensor | None:
        """What a block multiplies its FFN's output by before the residual stream takes it, (d_model,) or one number.

        None where it takes the output as it is. Such a vector belongs to its layer whatever the layer's FFN becomes.
        """
        if self.family.multiplier:
            return torch.tensor(float(getattr(self.model.config, self.family.multiplier)), device=self.device)
        if self.family.scale is None:
            return None
        path, _, name = self.family.scale.rpartition(".")
        found = getattr(self.blocks[layer].get_submodule(path), name)
        return found.detach() if isinstance(found, Tensor) else None

    def run(self, batch: Tensor) -> None:
        """One forward pass without the head, for what hooks record.

        batch: token ids, int64, (rows, length), or pixels, float32, (images, channels, height, width).
        """
        self.model.base_model(batch, **self.family.options)

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor that a checkpoint stores: every parameter once, and the buffers that the model saves."""
        return stored(self.model)

    def fuse(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, those of split linear maps as the stock model holds and names them."""
        found = dict(tensors)
        for name in self.names:
            for attribute, roles in self.family.fused.items():
                stem = ".".join(filter(None, (name, self.family.ffn, attribute)))
                for kind in ("weight", "bias"):
                    parts = [found.pop(f"{stem}.{role}.{kind}", None) for role in roles]
                    if parts[0] is not None:
                        found[f"{stem}.{kind}"] = torch.cat(parts)
        return found

    def to(self, device: Any) -> "ModelView":
        """This view, its model moved to a device."""
        self.model.to(device)
        return self

    def copy(self) -> "ModelView":
        """A view of a deep copy of the model."""
        return ModelView(copy.deepcopy(self.model))


def _paths(model: Any, path: str) -> list[str]:
    """The dotted paths that `path` stands for, in order; `*` is every child of a module."""
    before, star, after = path.partition(".*.")
    if not star:
        return [path]
    stages = [f"{before}.{name}.{after}" for name, _ in model.get_submodule(before).named_children()]
    return [found for stage in stages for found in _paths(model, stage) if _has(model, found)]


def _has(model: Any, path: str) -> bool:
    """Whether a model has a module at this path."""
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor that a checkpoint of a model stores: every parameter once, and the buffers that it saves."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in parameters}
    return dict(model.named_parameters()) | buffers
