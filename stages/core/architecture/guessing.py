"""The row of a family that is not in the table yet, guessed from the modules of a model without memory."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from stages.core.architecture.families import Family
from stages.core.process.errors import UserError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
AFTER = re.compile(r"^post_(feedforward|mlp|ffn|ffw)\w*norm")  # how norms after an FFN are named


def hint(config: Mapping[str, Any]) -> str:
    """What is said of an unsupported decoder: the row that its modules suggest, or why there is none."""
    try:
        return f" This row may do, and tests/test_families.py tells: {row(guess(config))}"
    except UserError as error:
        return f" {error}"
    except Exception:  # transformers raises nearly anything at a config that makes no sense, or does not know the type
        return ""


def row(family: Family) -> str:
    """A row as Python code, without what has its default."""
    said = []
    for field in fields(family):
        value = getattr(family, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            said.append(f"{field.name}={value!r}")
    return f"Family({', '.join(said)})"


def guess(config: Mapping[str, Any]) -> Family:
    """The row that describes the decoder of a config, as far as names and sizes tell.

    Raises UserError where its layers have no FFN of two or three matrices, or not the same one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    options = {key: value for key, value in config.items() if key != "model_type"}
    built = AutoConfig.for_model(config["model_type"], **options)
    if count := next((getattr(built, key) for key in EXPERTS if (getattr(built, key, None) or 0) > 1), 0):
        raise UserError(f"Its FFNs are mixtures of {count} experts: no layer has one FFN that others could share.")
    with no_init_weights(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    depth, width = built.num_hidden_layers, built.hidden_size
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise UserError(f"No list of {depth} blocks is among its modules.")
    layers, blocks = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
    found = [_ffn(block, width) for block in blocks]
    if odd := next((layer for layer, ffn in enumerate(found) if ffn != found[0]), 0):
        wide, other = (ffn[2] if ffn else "no" for ffn in (found[0], found[odd]))
        raise UserError(
            f"Its FFNs differ: {wide} neurons in layer 0, {other} in layer {odd}. Only FFNs of one width can be shared."
        )
    if found[0] is None:
        raise UserError("No FFN of two or three matrices was found in its blocks.")
    ffn, matrices, _, fused, transposed = found[0]
    module = blocks[0].get_submodule(ffn)
    names = [name for name in dir(module) if "act" in name.lower() or "gelu" in name.lower()]
    listed = {key for key, value in built.to_dict().items() if isinstance(value, (list, tuple)) and len(value) == depth}
    return Family(
        model_types=(built.model_type,),
        layers=layers,
        ffn=ffn,
        matrices=matrices,
        activated="gate" if "gate" in matrices else "in",
        activation=next((name for name in names if isinstance(getattr(module, name), torch.nn.Module)), "act_fn"),
        transposed=transposed,
        fused=fused,
        norm_after=next((name for name, _ in blocks[0].named_children() if AFTER.match(name)), None),
        multiplier="residual_multiplier" if hasattr(built, "residual_multiplier") else None,
        per_layer=frozenset(listed | {"layer_types"}),
    )


def _ffn(block: Any, width: int) -> tuple[str, dict[str, str], int, dict[str, tuple[str, ...]], bool] | None:
    """Path to the FFN, role -> path from there, neurons, fused maps, and whether weights are (d_in, d_out)."""
    shapes, transposed = {}, False
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2 and "attn" not in name and "attention" not in name:
            turned = type(module).__name__ == "Conv1D"
            shapes[name], transposed = tuple(weight.T.shape if turned else weight.shape), transposed or turned
    outs = [name for name, (d_out, d_in) in shapes.items() if d_out == width and d_in != width]
    if len(outs) != 1:
        return None
    ffn, _, out = outs[0].rpartition(".")
    hidden = shapes[outs[0]][1]
    beside = [(name.rpartition(".")[2], *shape) for name, shape in shapes.items() if name.rpartition(".")[0] == ffn]
    names = {name: d_out for name, d_out, d_in in beside if d_in == width}
    owners = {name.rpartition(".")[0] for name, _ in block.get_submodule(ffn).named_parameters()}
    if ffn and owners != names.keys() | {out}:
        return None  # a mixer of tokens, such as Mamba's, has more
    into = [name for name, d_out in names.items() if d_out == hidden]
    packed = [name for name, d_out in names.items() if d_out == 2 * hidden]
    if len(packed) == 1 and not into:
        (name,) = packed
        matrices = {"gate": f"{name}.gate", "in": f"{name}.in", "out": out}
        return ffn, matrices, hidden, {name: ("gate", "in")}, transposed
    if len(into) not in (1, 2):
        return None
    gates = sorted(into, key=lambda name: "gate" not in name)
    roles = {"in": into[0]} if len(into) == 1 else dict(zip(("gate", "in"), gates))
    return ffn, {**roles, "out": out}, hidden, {}, transposed
