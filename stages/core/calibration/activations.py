"""What the neurons of every FFN do on a text, all layers in one forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.families import Family
from stages.core.process.errors import UserError

# Site -> the role whose linear map is hooked, None for the family's `activated` one, and whether its input is
# meant (or its output).
SITES = {"input": ("in", True), "pre_activation": (None, False), "post_activation": ("out", True)}


@contextmanager
def recording(model: Any, family: Family, sites: tuple[str, ...]) -> Iterator[dict[str, list[Tensor]]]:
    """Within the context, every forward pass leaves each site's values there, one tensor a layer.

    A tensor has shape (tokens, d), float32. `input` is what the FFN reads, `pre_activation` the input of the
    activation function, `post_activation` the input of the output matrix. Hooks are removed on leaving, always.
    """
    depth = len(family.blocks(model))
    seen = {site: [torch.empty(0)] * depth for site in sites}

    def keep(site: str, layer: int) -> Callable[[Tensor], None]:
        def store(values: Tensor) -> None:
            seen[site][layer] = values.detach().flatten(0, -2).float()

        return store

    handles = []
    for layer in range(depth):
        linears = family.linears(model, layer)
        for site in sites:
            role, reads = SITES[site]
            linear, store = linears[role or family.activated], keep(site, layer)
            if reads:
                handles.append(linear.register_forward_pre_hook(lambda _, args, store=store: store(args[0])))
            else:
                handles.append(linear.register_forward_hook(lambda _, __, out, store=store: store(out)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stream(
    model: Any, family: Family, sites: tuple[str, ...], batches: list[Tensor]
) -> Iterator[dict[str, list[Tensor]]]:
    """The values at every site, batch by batch (int64 token ids of shape (sequences, length)).

    Raises UserError with site, layer and batch where a value is not finite.
    """
    device = next(model.parameters()).device
    with recording(model, family, sites) as seen:
        for number, batch in enumerate(batches):
            model.base_model(batch.to(device), use_cache=False)
            for layer, values in enumerate(zip(*seen.values())):
                for site, rows in zip(seen, values):
                    if not torch.isfinite(rows).all():
                        raise UserError(f"{site} of layer {layer} is not finite in batch {number}: model is broken")
            yield seen
