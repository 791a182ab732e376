"""Measure a variant in 8 bits, dense and shared: do sharing and quantisation add up?

Weights of linear maps in layers become int8 with a float32 scale and a zero point a row, by torchao. What lies before
and behind the layers, embeddings and the head, stays as it is. Needs the extra of pyproject.toml: pip install
'.[quantise]'. Run from the repository's root after `make repro`: make quantise VARIANT=softshare. Perplexity is taken
on the test split, as stage perplexity takes it.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stages.commands.finished import checkpoint_of
from stages.core.architecture.view import ModelView
from stages.core.forms import checkpoint
from stages.core.forms.dense import to_dense
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import choice

TEST, ROWS = Path("artifacts/text/test.parquet"), ("form", "weights", "megabytes", "perplexity")


def main(variant: str, to: Path) -> None:
    folder, quantised = checkpoint_of(variant), by_torchao()
    profile = params.load().profile
    device, section = devices.start(params.section(profile, "runtime")), params.section(profile, "perplexity")
    task = choice.by(folder, section)
    held_out, found = task.held_out(TEST, section), []
    view = checkpoint.load(folder)[0]
    for form, model in {"dense": to_dense(view), "shared": view.model}.items():
        small = copy.deepcopy(model)
        in_eight_bits(small, quantised)
        for weights, measured in {"float32": model, "int8": small}.items():
            watch = partial(progress, what=f"{variant}, {form}, {weights}")
            score = task.score(measured.to(device), held_out, watch)
            found.append(dict(zip(ROWS, (form, weights, stored_bytes(measured) / 1e6, score))))
    write_json(to, {"variant": variant, task.unit: len(held_out), "forms": found})
    for row in found:
        print(f"{row['form']:<7} {row['weights']:<8} {row['megabytes']:>10.2f} MB   perplexity {row['perplexity']:.4f}")


def by_torchao() -> Callable[[Any], Any]:
    """A function that gives a matrix (d_out, d_in) as an int8 parameter. Raises UserError where torchao is missing."""
    for name in ("torchao", "torch.utils._pytree"):  # of kernels for other machines
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(
            f"torchao is not installed ({error}): .venv/bin/python -m pip install torchao==0.18.0"
        ) from error
    from torch import nn

    def quantised(matrix: Any) -> Any:
        holder = nn.Linear(*reversed(matrix.shape), bias=False)
        holder.weight = nn.Parameter(matrix.detach().contiguous())
        quantize_(holder, Int8WeightOnlyConfig())
        return nn.Parameter(holder.weight.detach(), requires_grad=False)

    return quantised


def in_eight_bits(model: Any, quantised: Callable[[Any], Any]) -> None:
    """Replace every matrix of a layer's linear map by `quantised` of it, in place. What layers share they still share.

    That is each weight of a stock linear map, and A and B of deltas and factored maps. Pruned matrices keep their
    values.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from stages.core.forms.modeling_shared_ffn import FactoredLinear, SharedLinear

    made: dict[int, tuple[Any, Any]] = {}  # the original beside what it became, so that its id stays its own

    def once(parameter: Any, transposed: bool = False) -> Any:
        if id(parameter) not in made:
            made[id(parameter)] = parameter, quantised(parameter.T if transposed else parameter)
        return made[id(parameter)][1]

    for block in ModelView(model).blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, SharedLinear | FactoredLinear):
                module.A, module.B = once(module.A), once(module.B)
            elif isinstance(module, nn.Linear | Conv1D):
                weight = once(module.weight, isinstance(module, Conv1D))
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
                linear.weight, linear.bias = weight, module.bias
                block.set_submodule(name, linear)


def stored_bytes(model: Any) -> int:
    """The bytes of a model's tensors, each counted once; of a quantised one its integers and scales."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(part.nbytes for tensor in tensors.values() for part in parts(tensor))


def parts(tensor: Any) -> list[Any]:
    """The plain tensors that a tensor is made of: itself, or those that a subclass wraps."""
    if type(tensor).__name__ in ("Tensor", "Parameter"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names if getattr(tensor, name) is not None]


if __name__ == "__main__":
    command.entry(main)
