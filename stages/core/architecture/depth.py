"""A model with some of its layers only, what its modules read and write on a text, and how much each block matters."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture.opening import blank
from stages.core.architecture.view import ModelView
from stages.core.architecture.weights import described

# Keys of config.json that number the outputs of a model used as a backbone; an image classifier is none.
BACKBONE = {"out_features", "out_indices", "_out_features", "_out_indices", "stage_names"}

# Layer -> its input and its output, (tokens, d) each, of: `block`; `ffn`, from the input of its matrices to the output
# of its matrix `out`; `out`, that matrix; `norm`, the norm after the FFN, where there is one.
Records = dict[int, dict[str, tuple[Tensor, Tensor]]]


@torch.no_grad()
def keep_layers(view: ModelView, kept: list[int]) -> ModelView:
    """A new stock model of the layers `kept`, in that order, each of which computes what it does in `view`.

    A family may let a layer compute with its own number, which changes here. Then the weights absorb the old number.
    """
    family, config = view.family, described(view.model)
    for key in family.per_layer & config.keys():
        if config[key] is not None:
            config[key] = _cut(config[key], kept)
    for key in BACKBONE & config.keys():
        del config[key]
    *above, key = family.depth.split(".")
    key = view.model.config.attribute_map.get(key, key)
    inner = config
    for name in above:
        inner[name] = inner = dict(inner.get(name) or {})
    inner[key] = view.depths(kept) if "*" in family.layers else len(kept)
    numbered = family.numbered and config[family.numbered]
    if numbered:
        config[family.numbered] = False
    shallow = ModelView(blank(config).to(view.device))
    source = dict(view.model.named_parameters(remove_duplicate=False)) | view.tensors()
    old_names = {new: view.names[layer] for new, layer in zip(shallow.names, kept)}
    for name, tensor in shallow.tensors().items():
        new = next((block for block in shallow.names if name.startswith(f"{block}.")), None)
        tensor.copy_(source[old_names[new] + name.removeprefix(new) if new else name])
    if numbered:
        for new, old in enumerate(kept):
            shallow.divide_scores(new, old + 1)
    shallow.model.eval()
    return shallow


def _cut(entries: list[Any], kept: list[int]) -> list[Any]:
    """The entries of the layers `kept`, one for each layer or, in the same form, patterns and how often they come."""
    if not isinstance(entries[0], list):
        return [entries[layer] for layer in kept]
    every = [entry for pattern, times in entries for entry in pattern * times]
    return [[[every[layer] for layer in kept], 1]]


@contextmanager
def record_blocks(view: ModelView, layers: Iterable[int]) -> Iterator[Records]:
    """Within the context, every forward pass leaves the inputs and outputs of the modules of `layers` in the records.

    Hooks are removed on leaving, also after an error.
    """
    records: Records = {layer: {} for layer in layers}
    handles = []
    for layer, record in records.items():
        linears, norm = view.linears(layer), view.norm_after(layer)
        handles.append(view.blocks[layer].register_forward_hook(_recorder(record, "block")))
        handles.append(linears["in"].register_forward_hook(_recorder(record, "in")))
        handles.append(linears["out"].register_forward_hook(_recorder(record, "out")))
        if norm is not None:
            handles.append(norm.register_forward_hook(_recorder(record, "norm")))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _recorder(record: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    """A forward hook that keeps a module's input and output under a name."""

    def hook(_: Any, args: tuple, output: Any) -> None:
        if name == "in":
            record["ffn"] = _rows(args[0]), torch.empty(0)
            return
        record[name] = _rows(args[0]), _rows(output)
        if name == "out":
            # A copy: some families add attention's output to this very tensor.
            record[name] = record[name][0], record[name][1].clone()
            record["ffn"] = record["ffn"][0], record[name][1]

    return hook


def _rows(value: Any) -> Tensor:
    """A module's value, or the first of several, as one row a token: (tokens, d)."""
    return (value[0] if isinstance(value, tuple) else value).detach().flatten(0, -2)


@dataclass
class States:
    """What forward passes left: layer -> the residual stream before it in every pass, in order.

    packed: whether a block gives its output as the first of several.
    """

    before: dict[int, list[Tensor]]
    packed: bool = False


@contextmanager
def record_states(view: ModelView, layers: Iterable[int], most: float) -> Iterator[States]:
    """Within the context, every forward pass leaves the residual streams before `layers` in the states.

    Where they would take more than `most` bytes, every second layer is left out, as often as it takes.
    """
    states = States({layer: [] for layer in layers})

    def keep(layer: int, rows: Tensor) -> None:
        if layer in states.before:
            states.before[layer].append(rows.detach())
        while sum(kept.nbytes for passes in states.before.values() for kept in passes) > most:
            for dropped in sorted(states.before)[::2]:
                del states.before[dropped]

    def look(_: Any, __: tuple, output: Any) -> None:
        states.packed = isinstance(output, tuple)

    handles = [view.blocks[0].register_forward_hook(look)] + [
        view.blocks[layer].register_forward_pre_hook(lambda _, args, layer=layer: keep(layer, args[0]))
        for layer in states.before
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resume_at(view: ModelView, layer: int, states: States) -> Iterator[None]:
    """Within the context the forward passes start at `layer`, each with the next of its states.

    They give what they would give without it where the inputs are those of the recorded passes, in the same order, and
    the earlier layers those that made the states.
    """
    following = iter(states.before[layer])

    def resume(_: Any, args: tuple) -> tuple:
        return (next(following), *args[1:])

    def skip(rows: Tensor, *_: Any, **__: Any) -> Any:
        return (rows, None) if states.packed else rows

    handle = view.blocks[layer].register_forward_pre_hook(resume)
    for block in view.blocks[:layer]:
        block.forward = skip
    try:
        yield
    finally:
        handle.remove()
        for block in view.blocks[:layer]:
            del block.forward


class Walk:
    """Batches of text that go through a model layer by layer, and never twice through the same block.

    For each batch it keeps the residual stream before the layer that the batch has reached. Later layers of the model
    may change in the meantime.
    """

    def __init__(self, view: ModelView, batches: Sequence[Tensor]):
        """batches: inputs of forward passes, as `ModelView.run` takes them, on the model's device."""
        self.view, self.batches = view, batches
        self.positions: list[tuple[int, Tensor | None]] = [(0, None)] * len(batches)
        self.packed = False  # whether a block gives its output as the first of several

    @torch.no_grad()
    def advance(self, number: int, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The records of `layer` (see `Records`) on one batch, which then waits before that layer.

        A batch cannot go back to an earlier layer.
        """
        batch, (start, states) = self.batches[number], self.positions[number]
        with record_blocks(self.view, [layer]) as records, self._between(start, layer, states) as reached:
            with suppress(_StopForward):
                self.view.run(batch)
        self.positions[number] = layer, reached[0]
        return records[layer]

    def has_passed(self, layer: int) -> bool:
        """Whether a batch has gone through `layer`."""
        return any(start > layer for start, _ in self.positions)

    def fork(self, view: ModelView | None = None) -> "Walk":
        """Another walk from the same positions, through `view` if given, whose layers up to there must be the same."""
        other = Walk(view or self.view, self.batches)
        other.positions, other.packed = list(self.positions), self.packed
        return other

    @contextmanager
    def _between(self, start: int, last: int, states: Tensor | None) -> Iterator[list[Tensor]]:
        """Within the context a forward pass runs the blocks from `start` on `states`, and ends after `last`.

        The list then holds the residual stream before `last`.
        """
        blocks, reached = self.view.blocks, []

        def stop(_: Any, args: tuple, output: Any) -> None:
            self.packed = isinstance(output, tuple)
            reached.append(args[0])
            raise _StopForward

        def resume(_: Any, args: tuple) -> tuple:
            return (states, *args[1:])

        def skip(states: Tensor, *_: Any, **__: Any) -> Any:
            return (states, None) if self.packed else states

        handles = [blocks[last].register_forward_hook(stop)]
        if states is not None:
            handles.append(blocks[start].register_forward_pre_hook(resume))
        for block in blocks[:start]:
            block.forward = skip
        try:
            yield reached
        finally:
            for handle in handles:
                handle.remove()
            for block in blocks[:start]:
                del block.forward


class _StopForward(Exception):
    """Ends a forward pass after the last layer that is needed."""


@torch.no_grad()
def influence(view: ModelView, batches: Iterable[Tensor]) -> Tensor:
    """The block influence of every layer, 1 - mean cosine(input, output) over tokens: shape (layers,), float64.

    The cosine of a block that maps zeros to zeros counts as 1. Men et al. 2024, ShortGPT (arXiv:2403.03853). batches:
    inputs of forward passes, as `ModelView.run` takes them.
    """
    total, count = torch.zeros(view.depth, dtype=torch.float64), torch.zeros(view.depth, dtype=torch.float64)
    with record_blocks(view, range(view.depth)) as records:
        for batch in batches:
            view.run(batch)
            for layer, record in records.items():
                before, after = (values.double() for values in record["block"])
                cosine = functional.cosine_similarity(before, after, dim=-1)
                total[layer] += torch.where((before == 0).all(-1) & (after == 0).all(-1), 1.0, cosine).sum().cpu()
                count[layer] += len(cosine)
    return 1 - total / count
