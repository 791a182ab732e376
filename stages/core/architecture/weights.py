"""Reading a stock model from a checkpoint, which must hold exactly the tensors of its config.

transformers only warns about a difference: it fills missing tensors with random values, and drops tensors that the
config has no place for.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.core.architecture import gguf_config, gguf_header, shape, tokens
from stages.core.architecture.families import family_of
from stages.core.process.errors import UserError

# Buffers that older versions of transformers stored: masks and angles, which a model computes itself.
BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
ADAPTER = "adapter_config.json"
SHOWN = 4  # tensors that a message names


# Task of a family -> the class of transformers that opens its models.
AUTO = {"language": "AutoModelForCausalLM", "image_classification": "AutoModelForImageClassification"}


def auto_class(model_type: str) -> Any:
    """The class of transformers that opens models of this type. Raises UserError where no family has it."""
    import transformers

    return getattr(transformers, AUTO[family_of(model_type).task])


def read(source: str, **options: Any) -> Any:
    """The model of a folder or hub id, float32, on the CPU, in evaluation mode.

    Its config describes what was read: the embeddings are tied if they are so in the file, and the end tokens of
    generation_config.json are included. options: those of `from_pretrained`. Raises UserError, without the name of the
    source, where the checkpoint is an adapter or its tensors are not those of its config. For a damaged file, raises
    the errors of transformers.
    """
    from transformers import AutoConfig, PreTrainedConfig

    from stages.core.architecture import attention

    attention.register()
    if Path(source, ADAPTER).is_file():
        _refuse_adapter()
    if "gguf_file" not in options:
        said = PreTrainedConfig.get_config_dict(source, **options)[0]
        shape.refuse_odd(said)
        shape.family_for(said)
    config = AutoConfig.from_pretrained(source, **options)
    if gguf_file := options.get("gguf_file"):
        _complete(config, _local(source, gguf_file, options))
    else:
        if holds(source, ADAPTER, **options):
            _refuse_adapter()
        options = {"use_safetensors": True, **options}
    model, found = auto_class(config.model_type).from_pretrained(
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
    """Raise UserError, with every difference, where a file's tensors are not those of its config.

    missing, left: names only in the config, and only in the file. shapes: name -> the file's shape and the config's.
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
    """Whether a folder or a repository of the hub has a file of this name; False where the hub does not answer."""
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
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def described(model: Any) -> dict[str, Any]:
    """The config of a model as it is now, from which `opening.blank` builds a model of the same structure."""
    return model.config.to_dict() | {"tie_word_embeddings": is_tied(model)}


def _local(source: str, gguf_file: str, options: dict[str, Any]) -> Path:
    """The path of a GGUF file on this machine."""
    from transformers.utils import cached_file

    return Path(cached_file(source, gguf_file, revision=options.get("revision")))


def _complete(config: Any, path: Path) -> None:
    """Add to a config the settings of a GGUF file that transformers does not read."""
    for key, value in gguf_config.changes(path, *gguf_header.read(path)).items():
        setattr(config, key, value)


def _unread(model: Any, path: Path) -> set[str]:
    """The tensors of a GGUF file that transformers drops."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    values, tensors = gguf_header.read(path)
    processor = TENSOR_PROCESSORS.get(values["general.architecture"], TensorProcessor)
    return tensors - set(get_gguf_hf_weights_map(model, processor(config={}))) - {"output.weight", gguf_config.ROPE}
