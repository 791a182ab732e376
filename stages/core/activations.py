"""What the neurons of every FFN do on a text: activations of all layers in one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.core.errors import UserError
from stages.core.families import Family


@contextmanager
def recording(model: Any, family: Family, site: str) -> Iterator[list[Tensor]]:
    """Within the context, every forward pass leaves each layer's activations in the list, in layer order.

    A tensor has shape (tokens, d_ff), float32. `pre_activation` is the input of the activation function,
    `post_activation` the input of the output matrix. Hooks are removed on leaving, whatever happens.
    """
    depth = len(family.blocks(model))
    seen: list[Tensor] = [torch.empty(0)] * depth

    def keep(layer: int, activations: Tensor) -> None:
        seen[layer] = activations.detach().flatten(0, -2).float()

    handles = []
    for layer in range(depth):
        linears = family.linears(model, layer)
        if site == "pre_activation":
            hook = linears[family.activated].register_forward_hook(lambda _, __, out, layer=layer: keep(layer, out))
        else:
            hook = linears["out"].register_forward_pre_hook(lambda _, args, layer=layer: keep(layer, args[0]))
        handles.append(hook)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stream(model: Any, family: Family, site: str, batches: list[Tensor]) -> Iterator[list[Tensor]]:
    """Each layer's activations, batch by batch (int64 token ids of shape (sequences, length)).

    Raises UserError with layer and batch where an activation is not finite.
    """
    device = next(model.parameters()).device
    with recording(model, family, site) as seen:
        for number, batch in enumerate(batches):
            model.base_model(batch.to(device), use_cache=False)
            for layer, activations in enumerate(seen):
                if not torch.isfinite(activations).all():
                    raise UserError(f"activations of layer {layer} are not finite in batch {number}: model is broken")
            yield seen
