"""A device beside the CPU on a machine that has none: its tensors compute, and no operation takes both kinds.

A tensor of it holds one of the CPU and claims to lie on `meta`, torch's device without memory. A tensor without
dimensions may stand beside those of any device, and a CPU tensor may index, as on CUDA.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
aten = torch.ops.aten
# Operations that carry values from one device to another, whatever they are given.
CROSSING = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
# Their indices may be the CPU's.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}


class Mixed(Exception):
    """An operation was given tensors of both devices."""


class Far(Tensor):
    """A tensor that lies on the second device; `near` holds its values."""

    @staticmethod
    def __new__(cls, near: Tensor, requires_grad: bool = False):
        return Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, near: Tensor, requires_grad: bool = False):
        self.near = near

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"

    def __deepcopy__(self, memo: dict) -> "Far":
        if id(self) not in memo:
            copied = Far(self.near.clone(), self.requires_grad)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def tolist(self) -> list:
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with every leaf changed: arguments and results of operations nest in lists and tuples alone.

    torch's tree_map knows more containers and costs several times the operation.
    """
    if isinstance(value, list | tuple):
        changed = [_each(part, change) for part in value]
        return changed if isinstance(value, list) else tuple(changed)
    return change(value)


def _near(value: Any) -> Any:
    return _each(value, lambda leaf: leaf.near if isinstance(leaf, Far) else leaf)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the values, its results where its arguments lie."""
    tensors = list(_tensors((*args, *kwargs.values())))
    asked = kwargs.get("device")
    far = any(isinstance(tensor, Far) for tensor in tensors) if asked is None else torch.device(asked) == DEVICE
    if function not in CROSSING:
        strict = tensors[:1] if function in INDEXING else tensors
        kinds = {isinstance(tensor, Far) for tensor in strict if tensor.ndim}
        if len(kinds) > 1:
            raise Mixed(f"{function}: {[('far' if isinstance(t, Far) else 'near', tuple(t.shape)) for t in tensors]}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = function(*map(_near, args), **{key: _near(value) for key, value in kwargs.items()})
    if function is aten.copy_.default or (args and function._schema.is_mutable and isinstance(args[0], Tensor)):
        return args[0] if isinstance(found, Tensor) else found
    if not far:
        return found
    return _each(found, lambda leaf: Far(leaf) if isinstance(leaf, Tensor) else leaf)


class _Watched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled():
            # Operations made of others, as `to`, come here whole.
            with self:
                found = function.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return _run(function, args, kwargs or {})


class _Filled(TorchFunctionMode):
    """`torch.tensor` makes a tensor without values where it is asked for `meta`, before any dispatch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def watched() -> Iterator[torch.device]:
    """Within the context the second device is there, and `Mixed` is raised where it meets the CPU."""
    with _Filled(), _Watched():
        yield DEVICE


def move(module: nn.Module) -> nn.Module:
    """The module, its parameters and buffers on the second device; what is shared stays shared."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, Far):
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(Far(parameter.detach().clone()), parameter.requires_grad)
                    known[id(known[id(parameter)])] = parameter  # keeps the number taken
                part._parameters[name] = known[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, Far):
                part._buffers[name] = Far(buffer.clone())
    return module
