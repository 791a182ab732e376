"""Settings of config.json from the metadata of a GGUF file. Imports no torch.

transformers reads the sizes. It leaves position scaling, attention windows, biases and end tokens at the defaults of
the config class. A key that no config can express is refused by name
(github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp's src/llama-model.cpp).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.architecture import gguf_header
from stages.core.process.errors import UserError

ROPE = "rope_freqs.weight"  # the tensor with one divisor for each rotary frequency

# Keys that transformers or `changes` reads. In the file they stand after the architecture's name and a dot.
READ = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    "attention.key_length", "attention.value_length", "attention.sliding_window", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear",
}  # fmt: skip
# Keys that do not change the computation at any value, and keys with the one value that does not.
SILENT = {"tensor_data_layout", "rope.scaling.finetuned"}
NEUTRAL = {
    "expert_count": 0, "expert_used_count": 0, "pooling_type": 0, "attention.causal": True, "logit_scale": 1.0,
    "residual_scale": 1.0, "embedding_scale": 1.0, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0,
    "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0,
    "attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0,
}  # fmt: skip
NEEDED = {"gpt2": "attention.layer_norm_epsilon"}
# llama.cpp's name of an architecture -> transformers', for those whose keys are known here.
MODEL_TYPES = {name: name for name in ("gpt2", "llama", "qwen2", "qwen3", "gemma2")} | {"gemma3": "gemma3_text"}
# Gemma: keys that its configs know, and the layers of the model whose attention divides by d_model / heads.
GEMMA = {"attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window", "rope.freq_base_swa"}
WIDE = {"gemma2": 46, "gemma3": 62}


def model_type(path: Path, values: Mapping[str, Any]) -> str:
    """The model type of transformers for a file's architecture. Raises UserError where its keys are not known here."""
    kind = values.get("general.architecture")
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{path}: model type {kind!r} is not supported as GGUF; supported: {known}. Give safetensors")
    return MODEL_TYPES[kind]


def changes(path: Path, values: Mapping[str, Any], tensors: set[str]) -> dict[str, Any]:
    """Setting of config.json -> value, for the settings that transformers does not take from the file.

    `values` and `tensors` are what `gguf_header.read` gives. Raises UserError where a key of the file changes the
    computation and no config of its family can express it.
    """
    kind = values.get("general.architecture")
    model_type(path, values)
    own = {key.removeprefix(f"{kind}."): value for key, value in values.items() if key.startswith(f"{kind}.")}

    def refuse(key: str) -> None:
        name = f"{kind}.{key}" if key in own else key
        shown = f" = {own[key]!r}" if key in own else ""
        raise UserError(f"{path}: {name}{shown}: no {kind} config of transformers can represent it")

    own_keys = GEMMA if kind in WIDE else set()
    for key, value in own.items():
        if isinstance(value, gguf_header.Length):
            raise UserError(f"{path}: {kind}.{key} has {value} values, one a layer: layers that differ are no {kind}")
        if key not in READ | SILENT | own_keys and not (key in NEUTRAL and value == NEUTRAL[key]):
            refuse(key)
    needed = NEEDED.get(kind, "attention.layer_norm_rms_epsilon")
    if needed not in own:
        raise UserError(f"{path}: {kind}.{needed} is not in the file")
    if not own_keys and 0 < own.get("attention.sliding_window", 0) < own.get("context_length", math.inf):
        refuse("attention.sliding_window")
    found = _tokens(values)
    if kind == "gpt2":
        found |= {"n_positions": own.get("context_length"), "n_inner": own.get("feed_forward_length")}
        if ROPE in tensors:
            refuse(ROPE)
        return {key: value for key, value in found.items() if value is not None or key.endswith("_token_id")}
    width, heads = own.get("embedding_length"), own.get("attention.head_count")
    if not (isinstance(width, int) and isinstance(heads, int) and width > 0 and heads > 0):
        return found  # `shape.of_config` reports the missing size
    head = own.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head) != head:
            refuse(key)
    if kind == "llama":
        found["attention_bias"] = any(f"blk.0.attn_{part}.bias" in tensors for part in ("q", "k", "v", "output"))
        found["mlp_bias"] = any(f"blk.0.ffn_{part}.bias" in tensors for part in ("gate", "up", "down"))
    scaling = _scaling(path, own, tensors, head, refuse)
    base = {"rope_theta": own.get("rope.freq_base", 10000.0)}
    found |= {"head_dim": head, "rope_parameters": base | scaling}
    return found | _gemma(kind, own, found) if kind in WIDE else found


def _gemma(kind: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of Gemma 2 and 3. Layers with a window are those of the config class' own pattern."""
    width, heads = own["embedding_length"], own["attention.head_count"]
    usual = {"gemma2": 4096, "gemma3": 1024}[kind]
    settings = {
        "sliding_window": own.get("attention.sliding_window", usual),
        "query_pre_attn_scalar": width // heads if own.get("block_count") == WIDE[kind] else found["head_dim"],
    }
    for part in ("attn", "final"):
        default = {"attn": 50.0, "final": 30.0}[part] if kind == "gemma2" else 0.0
        settings[f"{part}_logit_softcapping"] = own.get(f"{part}_logit_softcapping", default) or None
    if kind == "gemma3":
        # Layers with a window have angles of their own, which are not scaled.
        local = {"rope_type": "default", "rope_theta": own.get("rope.freq_base_swa", 10000.0)}
        full = found["rope_parameters"]
        settings["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
    return settings


def _tokens(values: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that the file names, None for the others.

    The defaults of a config class are the ids of one checkpoint. In another vocabulary they may be ordinary words.
    """
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }


def _scaling(path: Path, own: Mapping[str, Any], tensors: set[str], head: int, refuse: Any) -> dict[str, Any]:
    """The entries of `rope_parameters`, except `rope_theta`. head: the width of an attention head."""
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0)) or 1.0
    # llama.cpp takes a factor without a type for a linear one.
    kind = own.get("rope.scaling.type", "linear")
    if ROPE in tensors:
        if kind == "yarn" or kind == "linear" and factor != 1.0:
            refuse("rope.scaling.type" if "rope.scaling.type" in own else "rope.scaling.factor")
        return _divided(gguf_header.floats(path, ROPE), own, head)
    if kind == "none" or kind in ("linear", "yarn") and factor == 1.0:
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = own.get("rope.scaling.original_context_length", own.get("context_length"))
        fast, slow = (own.get(f"rope.scaling.yarn_beta_{name}", beta) for name, beta in (("fast", 32), ("slow", 1)))
        return {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": float(fast), "beta_slow": float(slow),
        }  # fmt: skip
    refuse("rope.scaling.type")
    raise AssertionError


def _divided(factors: list[float], own: Mapping[str, Any], head: int) -> dict[str, Any]:
    """`rope_parameters` for frequencies that have a divisor each (`factors`).

    The rule of Llama 3 where it gives these divisors, otherwise `longrope` with the divisors as a list.
    """
    if all(factor == 1.0 for factor in factors):
        return {"rope_type": "default"}
    base, context = own.get("rope.freq_base", 10000.0), own.get("context_length")
    for original in (own.get("rope.scaling.original_context_length"), 8192, context):
        rule = {"factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if original and all(
            math.isclose(_llama3(2 * math.pi * base ** (2 * i / head), original, **rule), factor, rel_tol=1e-5)
            for i, factor in enumerate(factors)
        ):
            return {"rope_type": "llama3", "original_max_position_embeddings": original, **rule}
    # longrope has one list for short texts and one for long ones; here both are the same.
    lists = {"short_factor": factors, "long_factor": factors}
    return {
        "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": context,
        **lists,
    }  # fmt: skip


def _llama3(wavelength: float, original: int, factor: float, low_freq_factor: float, high_freq_factor: float) -> float:
    """The divisor that Llama 3.1 applies to the rotary frequency of this wavelength (in tokens)."""
    if wavelength < original / high_freq_factor:
        return 1.0
    if wavelength > original / low_freq_factor:
        return factor
    smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return 1 / ((1 - smooth) / factor + smooth)
