"""A model with some of its layers only, and what a layer does to the residual stream."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture.families import Family
from stages.core.architecture.opening import blank
from stages.core.architecture.weights import described


@torch.no_grad()
def keep_layers(model: Any, family: Family, kept: list[int]) -> Any:
    """A new stock model of the layers `kept`, in that order, each computing what it does in `model`.

    Where a layer computes with its own number, which it may lose, what the number did goes into its weights.
    """
    config = described(model)
    for key in family.per_layer & config.keys():
        if config[key] is not None:
            config[key] = [config[key][layer] for layer in kept]
    config[model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    numbered = family.numbered and config[family.numbered]
    if numbered:
        config[family.numbered] = False
    shallow = blank(config).to(next(model.parameters()).device)
    values = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in shallow.named_parameters():
        if name.startswith(family.layers + "."):
            layer, rest = name.removeprefix(family.layers + ".").split(".", 1)
            name = f"{family.layers}.{kept[int(layer)]}.{rest}"
        parameter.copy_(values[name])
    if numbered:
        for block, layer in zip(family.blocks(shallow), kept):
            family.divide_scores(block, layer + 1)
    return shallow.eval()


@contextmanager
def watching(
    model: Any, family: Family, layers: Iterable[int]
) -> Iterator[dict[int, dict[str, tuple[Tensor, Tensor]]]]:
    """Within the context every forward pass leaves there, for each layer, what three modules read and answered.

    `block`, its `ffn`, and `out`, the FFN's output matrix: two tensors of shape (tokens, d) each. Hooks are removed
    on leaving, always.
    """
    seen: dict[int, dict[str, tuple[Tensor, Tensor]]] = {layer: {} for layer in layers}

    def flat(value: Any) -> Tensor:
        return (value[0] if isinstance(value, tuple) else value).detach().flatten(0, -2)

    handles = []
    for layer, here in seen.items():
        block = family.blocks(model)[layer]
        watched = {"block": block, "ffn": getattr(block, family.ffn), "out": family.linears(model, layer)["out"]}
        for name, module in watched.items():
            handles.append(
                module.register_forward_hook(
                    lambda _, args, answer, here=here, name=name: here.__setitem__(name, (flat(args[0]), flat(answer)))
                )
            )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Walk:
    """Batches of text on their way through a model, so that no block works on them again and again.

    A model may be changed from where they stand onwards. Kept is one state for each batch.
    """

    def __init__(self, model: Any, family: Family, batches: Sequence[Tensor]):
        """`batches` hold token ids, (rows, length), on the model's device."""
        self.model, self.family, self.batches = model, family, batches
        self.positions: list[tuple[int, Tensor | None]] = [(0, None)] * len(batches)

    @torch.no_grad()
    def on(self, number: int, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Take a batch on to before `layer`, and say what the modules of `layer` read and answered (see `watching`).

        No batch can go back.
        """
        ids, (start, states) = self.batches[number], self.positions[number]
        with watching(self.model, self.family, [layer]) as seen, self._between(start, layer, states):
            with suppress(_StopForward):
                self.model.base_model(ids, use_cache=False)
        self.positions[number] = layer, seen[layer]["block"][0].view(*ids.shape, -1)
        return seen[layer]

    def is_beyond(self, layer: int) -> bool:
        """Whether a batch has passed `layer`."""
        return any(start > layer for start, _ in self.positions)

    def fork(self, model: Any = None) -> "Walk":
        """Another walk from where this one stands; through `model` if given, which is the same up to there."""
        other = Walk(model or self.model, self.family, self.batches)
        other.positions = list(self.positions)
        return other

    @contextmanager
    def _between(self, start: int, last: int, states: Tensor | None) -> Iterator[None]:
        """Within the context a forward pass runs the blocks from `start` on `states`, and ends after `last`."""
        blocks = self.family.blocks(self.model)

        def enough(*_: Any) -> None:
            raise _StopForward

        handles = [blocks[last].register_forward_hook(enough)]
        if states is not None:
            handles.append(blocks[start].register_forward_pre_hook(lambda _, args: (states, *args[1:])))
        for block in blocks[:start]:
            block.forward = lambda given, *_, **__: given
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for block in blocks[:start]:
                del block.forward


class _StopForward(Exception):
    """All that was to be seen has been."""


@torch.no_grad()
def influence(model: Any, family: Family, batches: Iterable[Tensor]) -> Tensor:
    """1 - the mean cosine between what a block reads and what it answers, shape (layers,), float64.

    A block that answers zeros to zeros has changed nothing: that cosine counts as 1.

    The block influence of ShortGPT (Men et al. 2024, arXiv:2403.03853); `batches` hold token ids, (rows, length).
    """
    depth = len(family.blocks(model))
    total, count = torch.zeros(depth, dtype=torch.float64), 0
    with watching(model, family, range(depth)) as seen:
        for batch in batches:
            model.base_model(batch, use_cache=False)
            for layer, here in seen.items():
                before, after = (values.double() for values in here["block"])
                cosine = functional.cosine_similarity(before, after, dim=-1)
                total[layer] += torch.where((before == 0).all(-1) & (after == 0).all(-1), 1.0, cosine).sum().cpu()
            count += batch.numel()
    return 1 - total / count
