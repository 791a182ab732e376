"""Opening the model under study, by the library's own means."""

from pathlib import Path
from typing import Any

from stages.core.architecture.families import family_of
from stages.core.process import hub
from stages.core.process.errors import UserError


def open_source(model: str, revision: str | None, gguf_file: str | None) -> tuple[Any, Any]:
    """A model (float32, on the CPU) and its tokenizer from a hub id or a local folder.

    Weights are read from safetensors or GGUF only, and no code that comes with a model is run. Raises
    UserError where the source cannot be opened.
    """
    options = {key: value for key, value in [("revision", revision), ("gguf_file", gguf_file)] if value}
    if Path(model).is_dir():
        options["local_files_only"] = True
    else:
        hub.settle()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        safe = {} if gguf_file else {"use_safetensors": True}
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32", **safe, **options)
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(
            f"cannot open base.model = {model!r}"
            + "".join(f", {key} = {value!r}" for key, value in options.items() if key != "local_files_only")
            + f": {reason}. Give a hub id that this machine can reach or a local folder with safetensors or GGUF; "
            "profile small needs no network."
        ) from error
    if len(tokenizer) > loaded.config.vocab_size:
        raise UserError(
            f"the tokenizer of {model!r} has {len(tokenizer)} tokens, its model only {loaded.config.vocab_size}"
        )
    for name, parameter in loaded.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"base.model = {model!r}: {name} holds a value that is not finite: the file is damaged")
    return (dequantised(loaded) if gguf_file else loaded).eval(), tokenizer


def open_external(model: str, revision: str | None, tokenizer: Any, vocabulary: int) -> Any:
    """Another checkpoint that is to be measured on tokens of `tokenizer`, the tokenizer of the model under study.

    Opened as `open_source` opens it, but it need not bring a tokenizer. Raises UserError where its vocabulary has
    another size, or where the tokenizer that it brings has other tokens: their perplexities could not be compared.
    """
    options = {"revision": revision} if revision else {}
    if Path(model).is_dir():
        options["local_files_only"] = True
    else:
        hub.settle()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.hub import has_file

    try:
        external = AutoModelForCausalLM.from_pretrained(model, dtype="float32", use_safetensors=True, **options)
    except Exception as error:  # as above
        raise UserError(f"cannot open surgery.model = {model!r}: {' '.join(str(error).split())[:400]}") from error
    family_of(external.config.model_type)
    own = tokenizer
    # Asked first, because the library makes up an empty tokenizer where there is none.
    if any(has_file(model, name, revision) for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        own = AutoTokenizer.from_pretrained(model, **options)
    if external.config.vocab_size != vocabulary or own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"params.yaml: surgery.model = {model!r} has another vocabulary ({external.config.vocab_size} entries, the "
            f"model under study has {vocabulary}): perplexities over different tokens cannot be compared"
        )
    return external.eval()


def dequantised(model: Any) -> Any:
    """The same weights in a model that does not remember having been GGUF, and so can be saved."""
    config = model.config.to_dict()
    del config["quantization_config"]
    plain = blank(config)
    plain.load_state_dict(model.state_dict())
    return plain


def blank(config: dict[str, Any]) -> Any:
    """A stock model of this config, float32, with arbitrary weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.core.architecture import attention

    attention.register()
    options = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **options), dtype=torch.float32)


def open_snapshot(folder: Path) -> Any:
    """The snapshot that stage `base` wrote, float32, on the CPU, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    from stages.core.architecture import attention

    attention.register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True).eval()


def check_fits(model: Any, key: str, length: int) -> None:
    """Raise UserError where sequences of `length` tokens exceed the model's positions."""
    most = model.config.max_position_embeddings
    if length > most:
        raise UserError(f"params.yaml: {key} = {length}: this model takes at most {most} positions")
