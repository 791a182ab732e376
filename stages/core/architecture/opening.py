"""Opening the model under study, by the library's own means."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core.architecture import tokens, weights
from stages.core.architecture.families import family_of
from stages.core.process import hub
from stages.core.process.artifacts import write_json
from stages.core.process.errors import UserError

# As safetensors names them.
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Files of a vocabulary, of which one is needed: a tokenizer_config.json alone holds no word.
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def commit(model: str, revision: str | None, gguf_file: str | None) -> str | None:
    """The commit that `revision` of a hub stands for now; None for a folder or where the hub has no such model."""
    if Path(model).is_dir():
        return None
    hub.settle()
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return extract_commit_hash(cached_file(model, gguf_file or "config.json", revision=revision), None)
    except (OSError, ValueError):  # opening it says why
        return None


def dtype(model: str, revision: str | None, gguf_file: str | None) -> str:
    """The type of a source's weights, such as `bfloat16`; `float32` for GGUF, whose blocks have none."""
    if gguf_file:
        return "float32"
    from transformers import AutoConfig
    from transformers.utils import cached_file

    options = _reach(model) | ({"revision": revision} if revision else {})
    if (stated := AutoConfig.from_pretrained(model, **options).dtype) is not None:
        return str(stated).removeprefix("torch.")
    from safetensors import safe_open

    name = "model.safetensors"
    if not weights.holds(model, name, **options):
        index = json.loads(Path(cached_file(model, f"{name}.index.json", **options)).read_text(encoding="utf-8"))
        name = next(iter(index["weight_map"].values()))
    with safe_open(cached_file(model, name, **options), framework="pt") as file:
        kinds = [file.get_slice(key).get_dtype() for key in file.keys()]
    return next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), "float32")


def open_source(model: str, revision: str | None, gguf_file: str | None) -> tuple[Any, Any]:
    """A model (float32, on the CPU) and its tokenizer or image processor from a hub id or a local folder.

    Weights are read from safetensors or GGUF only, and no code that comes with a model is run. Raises
    UserError where the source cannot be opened or does not hold what its config promises.
    """
    options = {key: value for key, value in [("revision", revision), ("gguf_file", gguf_file)] if value}
    named = f"base.model = {model!r}" + "".join(f", {key} = {value!r}" for key, value in options.items())
    advice = ". Give a hub id that this machine can reach, or a local folder; profile small needs no network"
    if Path(model).is_dir():
        advice = ". A file in this folder is missing or damaged"
    with _refusing(f"cannot open {named}", advice):
        loaded = weights.read(model, **_reach(model), **options)
    if gguf_file:
        loaded = dequantised(loaded)
    processor = PROCESSORS[family_of(loaded.config.model_type).task](model, named, options, loaded)
    if gguf_file:
        tokens.add_turn_ends(loaded, processor)
    if getattr(loaded.config, "add_cross_attention", False):
        raise UserError(
            f"base.model = {model!r}: add_cross_attention in its config: it reads an encoder, and such parts are not "
            "supported"
        )
    for name, parameter in loaded.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"base.model = {model!r}: {name} holds a value that is not finite: the file is damaged")
    return loaded, processor


def _open_tokenizer(model: str, named: str, options: dict[str, str], loaded: Any) -> Any:
    """The tokenizer of a model. Raises UserError where there is none, or it has more tokens than the model."""
    with _refusing(f"cannot open the tokenizer of {named}"):
        tokenizer = _tokenizer(model, options)
    if tokenizer is None:
        raise UserError(f"{named} has no tokenizer: tokenizer.json, or the vocabulary that it is made from, is missing")
    most = max(len(tokenizer), *(number + 1 for number in tokenizer.get_vocab().values()))
    if most > loaded.config.vocab_size:
        raise UserError(f"the tokenizer of {model!r} has {most} tokens, its model only {loaded.config.vocab_size}")
    return tokenizer


def _open_image_processor(model: str, named: str, options: dict[str, str], loaded: Any) -> Any:
    """The image processor of a model. Raises UserError where there is none."""
    from transformers import AutoImageProcessor

    with _refusing(f"cannot open the image processor of {named}"):
        return AutoImageProcessor.from_pretrained(model, **_reach(model), **options)


def read_image_processor(model: str, revision: str | None) -> Any | None:
    """The image processor of another checkpoint; None where it brings none."""
    options = {"revision": revision} if revision else {}
    if not weights.holds(model, "preprocessor_config.json", **_reach(model), **options):
        return None
    return _open_image_processor(model, f"surgery.model = {model!r}", options, None)


def save_processor(processor: Any, folder: Path) -> None:
    """Write a tokenizer or image processor as `from_pretrained` reads it."""
    processor.save_pretrained(folder)
    data = getattr(processor, "data_config", None)
    if data is not None:  # timm's writes nothing: a checkpoint of timm has it in config.json
        said = {**processor.to_dict(), "pretrained_cfg": data}
        write_json(folder / "preprocessor_config.json", said)


# Task of a family -> what opens that which makes a model's inputs.
PROCESSORS = {"language": _open_tokenizer, "image_classification": _open_image_processor}


def open_external(model: str, revision: str | None, tokenizer: Any, vocabulary: int) -> Any:
    """Another checkpoint that is to be measured on tokens of `tokenizer`, the tokenizer of the model under study.

    Opened as `open_source` opens it, but it need not bring a tokenizer. Raises UserError where its vocabulary has
    another size, or where the tokenizer that it brings has other tokens: their perplexities could not be compared.
    """
    external = read_external(model, revision)
    options = {"revision": revision} if revision else {}
    with _refusing(f"cannot open the tokenizer of surgery.model = {model!r}"):
        own = _tokenizer(model, options)
    if external.config.vocab_size != vocabulary or (own and own.get_vocab() != tokenizer.get_vocab()):
        raise UserError(
            f"params.yaml: surgery.model = {model!r} has another vocabulary ({external.config.vocab_size} entries, the "
            f"model under study has {vocabulary}): perplexities over different tokens cannot be compared"
        )
    return external


def read_external(model: str, revision: str | None) -> Any:
    """The model of another checkpoint, float32, on the CPU. Raises UserError where it is of no supported family."""
    options = {"revision": revision} if revision else {}
    with _refusing(f"cannot open surgery.model = {model!r}"):
        external = weights.read(model, **_reach(model), **options)
    family_of(external.config.model_type)
    return external


def open_snapshot(folder: Path) -> Any:
    """The snapshot that stage `base` wrote, float32, on the CPU, in evaluation mode."""
    with _refusing(f"cannot open {folder}"):
        return weights.read(str(folder), local_files_only=True)


def _reach(model: str) -> dict[str, bool]:
    """The options of `from_pretrained` for a folder or for the hub."""
    if Path(model).is_dir():
        return {"local_files_only": True}
    hub.settle()
    return {}


@contextmanager
def _refusing(what: str, advice: str = "") -> Iterator[None]:
    """Within the context every error becomes one line that begins with `what`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"{what}: {reason}{advice}") from error


def _tokenizer(model: str, options: dict[str, str]) -> Any:
    """The tokenizer of a folder or hub id; None where there is none, for which the library makes up an empty one."""
    from transformers import AutoTokenizer

    options = _reach(model) | options
    if "gguf_file" not in options and not any(weights.holds(model, name, **options) for name in VOCABULARIES):
        return None
    tokenizer = AutoTokenizer.from_pretrained(model, **options)
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    return tokenizer if words else None


def dequantised(model: Any) -> Any:
    """The same weights in a model whose config has no trace of GGUF, so that it can be saved."""
    plain = blank({key: value for key, value in weights.described(model).items() if key != "quantization_config"})
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def blank(config: dict[str, Any]) -> Any:
    """A stock model of this config, float32, whose parameters have undefined values and must be filled."""
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.initialization import no_init_weights

    from stages.core.architecture import attention

    attention.register()
    # A class may know keys of config.json that are none of its attributes, as timm's knows num_classes.
    built = CONFIG_MAPPING[config["model_type"]].from_dict({key: config[key] for key in config.keys() - {"model_type"}})
    with no_init_weights():  # drawing them takes longer than to read a file
        model = weights.auto_class(config["model_type"]).from_config(built, dtype=torch.float32)
    model.tie_weights()
    return model


def outline(config: dict[str, Any]) -> Any:
    """A stock model of this config whose parameters take no memory: shapes without values, on torch's meta device."""
    import torch

    with torch.device("meta"):
        return blank(config)


def check_fits(model: Any, key: str, length: int) -> None:
    """Raise UserError where sequences of `length` tokens exceed the model's positions."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise UserError(f"params.yaml: {key} = {length}: this model takes at most {most} positions")
