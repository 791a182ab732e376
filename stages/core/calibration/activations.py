"""The activations of every FFN on a text, all layers in one forward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture.view import ModelView
from stages.core.process.errors import UserError

# Site -> the role of the linear map that is hooked (None: the family's `activated` role), and whether the site is that
# map's input (or its output).
SITES = {"input": ("in", True), "pre_activation": (None, False), "post_activation": ("out", True)}

Values = dict[str, list[Tensor]]  # site -> one tensor a layer, float32, (tokens, d)


@contextmanager
def record_sites(view: ModelView, sites: tuple[str, ...]) -> Iterator[Values]:
    """Within the context, every forward pass leaves the values at each site in `Values`.

    `input` is the FFN's input, `pre_activation` the input of the activation function, `post_activation` the input of
    the output matrix. Hooks are removed on leaving, also after an error.
    """
    values: Values = {site: [torch.empty(0)] * view.depth for site in sites}
    handles = []
    for layer in range(view.depth):
        linears = view.linears(layer)
        for site in sites:
            role, is_input = SITES[site]
            linear, store = linears[role or view.family.activated], _store(values[site], layer)
            handles.append(_hook_input(linear, store) if is_input else _hook_output(linear, store))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _store(site: list[Tensor], layer: int) -> Callable[[Tensor], None]:
    """A function that keeps a tensor as the values of a layer."""

    def store(values: Tensor) -> None:
        site[layer] = values.detach().flatten(0, -2).float()

    return store


def _hook_input(linear: Any, store: Callable[[Tensor], None]) -> Any:
    """Store a module's input from now on; the handle that ends it."""

    def hook(_: Any, args: tuple) -> None:
        store(args[0])

    return linear.register_forward_pre_hook(hook)


def _hook_output(linear: Any, store: Callable[[Tensor], None]) -> Any:
    """Store a module's output from now on; the handle that ends it."""

    def hook(_: Any, __: tuple, output: Tensor) -> None:
        store(output)

    return linear.register_forward_hook(hook)


@torch.no_grad()
def stream(view: ModelView, sites: tuple[str, ...], batches: Iterable[Tensor]) -> Iterator[Values]:
    """The values at every site, batch by batch. batches: inputs of forward passes, as `ModelView.run` takes them.

    Layers that see more tokens than others, as in a model with stages, give as many as the others, evenly spread.
    Raises UserError with site, layer and batch where a value is not finite.
    """
    device = view.device
    with record_sites(view, sites) as seen:
        for number, batch in enumerate(batches):
            view.run(batch.to(device))
            for layer, values in enumerate(zip(*seen.values())):
                for site, rows in zip(seen, values):
                    # A finite sum has finite terms; only a sum that is not needs a look at each.
                    if not rows.sum().isfinite() and not torch.isfinite(rows).all():
                        raise UserError(f"{site} of layer {layer} is not finite in batch {number}: model is broken")
            yield _as_many(seen)


def _as_many(seen: Values) -> Values:
    """The values of the same number of tokens in every layer, those of the layer with the fewest."""
    fewest = min(len(rows) for values in seen.values() for rows in values)
    return {site: [_spread(rows, fewest) for rows in values] for site, values in seen.items()}


def _spread(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows, evenly spread."""
    if len(rows) == count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]
