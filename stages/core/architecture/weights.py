"""A stock model read from a checkpoint: whole, as its config says, or not at all.

The library itself fills what a file lacks with random values, leaves out what the config does not ask for, and says
so in a report that nobody reads.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.core.architecture import gguf_config, gguf_header, shape, tokens
from stages.core.process.errors import UserError

# Buffers that older versions of the library stored: masks and angles, which a model makes up itself.
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
ADAPTER = "adapter_config.json"
SHOWN = 4  # tensors that a message names


def read(source: str, **options: Any) -> Any:
    """The model of a folder or hub id, float32, on the CPU, in evaluation mode.

    Its config says what was read: whether the embeddings are tied is what the file says, and all end tokens of
    generation_config.json are in it. `options` are those of `from_pretrained`. Raises UserError, without the source's
    name, where the checkpoint is no plain one of a stock model or does not hold what its config promises; and
    whatever the library raises at a damaged file.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.core.architecture import attention

    attention.register()
    if Path(source, ADAPTER).is_file():
        _refuse_adapter()
    config = AutoConfig.from_pretrained(source, **options)
    if gguf_file := options.get("gguf_file"):
        _complete(config, _local(source, gguf_file, options))
    else:
        shape.refuse_odd(config.to_dict())
        if holds(source, ADAPTER, **options):
            _refuse_adapter()
        options = {"use_safetensors": True, **options}
    model, found = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing, left = set(found["missing_keys"]), set(found["unexpected_keys"])
    if gguf_file:
        left |= _unread(model, _local(source, gguf_file, options))
    refuse_difference(missing, left, {name: shapes for name, *shapes in found["mismatched_keys"]})
    model.config.tie_word_embeddings = is_tied(model)
    tokens.state_end_tokens(model)
    return model.eval()


def refuse_difference(missing: Iterable[str], left: Iterable[str], shapes: dict[str, Any]) -> None:
    """Raise UserError with every way in which a file's tensors are not those of its config.

    `shapes` are two of each tensor that has another: the file's and the config's.
    """
    missing, left = sorted(missing), sorted(name for name in left if not BUFFERS.search(name))
    wrong = []
    if missing:
        wrong.append(f"the file lacks {_few(missing)}")
    if left:
        wrong.append(f"its config has no place for {_few(left)}")
    if shapes:
        pairs = [f"{name} {list(shapes[name][0])} instead of {list(shapes[name][1])}" for name in sorted(shapes)]
        wrong.append(f"shapes differ from its config's: {_few(pairs)}")
    if wrong:
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = " (if its head is the embedding, config.json has to say tie_word_embeddings: true)"
        raise UserError("; ".join(wrong) + hint)


def holds(source: str, name: str, **options: Any) -> bool:
    """Whether a folder or the repository of a hub id has a file of this name, as far as that can be known."""
    from transformers.utils import cached_file

    lenient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    return cached_file(source, name, **options, **lenient) is not None


def _refuse_adapter() -> None:
    raise UserError(f"{ADAPTER} says that an adapter belongs to these weights: merge it into them first")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def is_tied(model: Any) -> bool:
    """Whether the head of a model is its embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def described(model: Any) -> dict[str, Any]:
    """The config of a model as it is, from which a model of the same structure can be built."""
    return model.config.to_dict() | {"tie_word_embeddings": is_tied(model)}


def _local(source: str, gguf_file: str, options: dict[str, Any]) -> Path:
    """Where a GGUF file lies on this machine."""
    from transformers.utils import cached_file

    return Path(cached_file(source, gguf_file, revision=options.get("revision")))


def _complete(config: Any, path: Path) -> None:
    """Put into a config what the library does not read of a GGUF file."""
    for key, value in gguf_config.changes(path, *gguf_header.read(path)).items():
        setattr(config, key, value)


def _unread(model: Any, path: Path) -> set[str]:
    """The tensors of a GGUF file that the library drops."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    values, tensors = gguf_header.read(path)
    processor = TENSOR_PROCESSORS.get(values["general.architecture"], TensorProcessor)
    return tensors - set(get_gguf_hf_weights_map(model, processor(config={}))) - {"output.weight", gguf_config.ROPE}
