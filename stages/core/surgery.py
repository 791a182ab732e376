"""The operations under study: layers that share one FFN, and groups of layers that become one."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core import ffn
from stages.core.families import family_of
from stages.core.lowrank import DELTAS
from stages.core.merging import BASES
from stages.core.models import blank
from stages.core.params import Collapse, Keep, Share
from stages.core.sharing import Sharing, install

# For a group's first layer and another member: the permutation that lays the other's neurons upon the first's.
Permutations = Callable[[int, int], Tensor]


def reader(arrays: Mapping[str, np.ndarray], device: Any = "cpu") -> Permutations:
    """Permutations from the arrays that stage `align` wrote, keyed `first-other`."""
    return lambda first, other: torch.from_numpy(arrays[f"{first}-{other}"]).to(device)


def operate(model: Any, groups: list[list[int]], permutations: Permutations, spec: Keep | Share | Collapse):
    """A new model with `groups` of layers treated as `spec` says, and its `Sharing`; `model` stays as it is."""
    if isinstance(spec, Share):
        return share(model, groups, permutations, spec)
    if isinstance(spec, Collapse):
        return collapse(model, groups, permutations, spec)
    return copy.deepcopy(model), Sharing()


@torch.no_grad()
def share(model: Any, groups: list[list[int]], permutations: Permutations, spec: Share) -> tuple[Any, Sharing]:
    """Every group holds one base FFN weight; a member's delta starts as `spec.delta` fits its residual.

    W_l = W_c + A_l B_l for each of the FFN's matrices, in the neuron order of the group's first layer.
    """
    family, shared = family_of(model.config.model_type), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    sharing = Sharing(groups, spec.rank, spec.biases)
    install(shared, family, sharing)
    for group in groups:
        members = aligned(model, group, permutations, spec.alignment)
        base = merged(members, spec.base)
        for layer, member in zip(group, members):
            for role, linear in family.linears(shared, layer).items():
                if spec.rank:
                    residual = member[f"w_{role}"] - base[f"w_{role}"]
                    a, b = DELTAS[spec.delta](residual, spec.rank, generator)
                    linear.A.copy_(a)
                    linear.B.copy_(b)
                stock = linear.base if spec.rank else linear
                stock.weight.copy_(base[f"w_{role}"].T if family.transposed else base[f"w_{role}"])
                if stock.bias is not None:
                    stock.bias.copy_((base if spec.biases == "shared" else member)[f"b_{role}"])
    return shared, sharing


@torch.no_grad()
def collapse(model: Any, groups: list[list[int]], permutations: Permutations, spec: Collapse) -> tuple[Any, Sharing]:
    """Every group becomes its first layer with the group's merged FFN; the model loses the other layers."""
    family = family_of(model.config.model_type)
    gone = {layer for group in groups for layer in group[1:]}
    kept = [layer for layer in range(len(family.blocks(model))) if layer not in gone]
    config = model.config.to_dict()
    for key, value in config.items():
        # Settings with one entry a layer, such as llama's `layer_types`, lose the same layers.
        if isinstance(value, list) and len(value) == len(family.blocks(model)):
            config[key] = [value[layer] for layer in kept]
    config[model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    shallow = blank(config)
    values = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in shallow.named_parameters():
        if name.startswith(family.layers + "."):
            layer, rest = name.removeprefix(family.layers + ".").split(".", 1)
            name = f"{family.layers}.{kept[int(layer)]}.{rest}"
        parameter.copy_(values[name])
    for group in groups:
        base = merged(aligned(model, group, permutations, spec.alignment), spec.base)
        ffn.write(shallow, family, kept.index(group[0]), base)
    return shallow.eval(), Sharing()


def aligned(model: Any, group: list[int], permutations: Permutations, alignment: str) -> list[Mapping[str, Tensor]]:
    """The group's FFNs, canonical, each in the neuron order of the first (or as it is: `identity`)."""
    family = family_of(model.config.model_type)
    members = [ffn.read(model, family, layer) for layer in group]
    if alignment == "identity":
        return members
    return members[:1] + [
        ffn.permute(member, permutations(group[0], layer)) for layer, member in zip(group[1:], members[1:])
    ]


def merged(members: list[Mapping[str, Tensor]], base: str) -> dict[str, Tensor]:
    """One FFN for several aligned ones, tensor by tensor."""
    return {name: BASES[base]([member[name] for member in members]) for name in members[0]}
