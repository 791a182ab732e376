"""A GGUF file computes what its safetensors form does, or is refused by the name of a key."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES

from stages.core.architecture import gguf_config, gguf_header, opening, shape, tokens
from stages.core.process.errors import UserError

THETA, HEAD = 10000.0, tiny.WIDTH // 4
WORDS = ["<|endoftext|>", "<s>", "</s>", "ab", *map(chr, range(97, 123)), *(f"w{i}" for i in range(66)), "<mask>"]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": THETA, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def divisors(scaling) -> np.ndarray:
    """By what llama.cpp's converter says that each frequency is divided."""
    found, original = [], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, HEAD, 2):
        length = 2 * math.pi * scaling["rope_theta"] ** (i / HEAD)
        smooth = (original / length - low) / (high - low)
        between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        found.append(1 if length < original / high else scaling["factor"] if length > original / low else between)
    return np.array(found, np.float32)


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in llama.cpp's order: halves of a head interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write(model, folder: Path, keys=None, tensors=None, left_out=()) -> Path:
    """The model as llama.cpp's converter writes it, some keys (after the architecture's name) and tensors added."""
    config, kind = model.config, model.config.model_type
    gemma, kind = kind.startswith("gemma"), "gemma3" if kind == "gemma3_text" else kind
    writer = GGUFWriter(folder / "model.gguf", kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or config.n_inner or 4 * tiny.WIDTH)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        if "attention.head_count_kv" not in (keys or {}):
            writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        base = config.rope_parameters.get("full_attention", config.rope_parameters)
        writer.add_rope_freq_base(base["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["a b"])
    for key, value in (keys or {}).items():
        key = key if key.startswith("tokenizer.") else f"{kind}.{key}"
        add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, list: writer.add_array}
        add.get(type(value), writer.add_uint32)(key, value)
    names = get_tensor_name_map(next(a for a, n in MODEL_ARCH_NAMES.items() if n == kind), config.num_hidden_layers)
    for name, value in model.named_parameters():
        value, (stem, suffix) = value.detach().numpy(), name.rsplit(".", 1)
        if stem.rsplit(".", 1)[-1] in ("c_attn", "c_proj", "c_fc") and suffix == "weight":
            value = value.T
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            value = pairs(value, config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads)
        if gemma and "norm" in stem:  # the converter stores what norms multiply by
            value = value + 1
        if name not in left_out:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(value))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def opened(folder: Path):
    return opening.open_source(str(folder), None, "model.gguf")[0]


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": THETA, **parameters}}


LONG = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_KEYS = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
    "rope.scaling.finetuned": True,
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
WIDTHS = {"attention.key_length": 12, "attention.value_length": 12}
ODD = [1.0, 1.5, 2.5, 7.0]
# The family, its config, and the keys and tensors that say so in GGUF.
SAME = {
    "gpt2": ("gpt2", {}, {}, {}),
    "gpt2 wide": ("gpt2", {"n_inner": 48}, {}, {}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}, {}, {}),
    "llama": ("llama", {"mlp_bias": False}, {}, {}),
    "llama biases": ("llama", {"attention_bias": True, "tie_word_embeddings": False}, {}, {}),
    "qwen2": ("qwen2", {}, {}, {}),
    "qwen3": ("qwen3", {}, WIDTHS, {}),
    "gemma 2": (
        "gemma2",
        TIED | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 12},
        WIDTHS | {"attention.sliding_window": 6, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, {},
    ),
    "gemma 2 without caps": (
        "gemma2", TIED | {"query_pre_attn_scalar": 12}, WIDTHS | {"attention.sliding_window": 6}, {},
    ),
    "gemma 3": (
        "gemma3_text", {"query_pre_attn_scalar": 12, "num_hidden_layers": 7, "layer_types": None},
        WIDTHS | {"attention.sliding_window": 6}, {},
    ),
    "gemma 3 scaled": (
        "gemma3_text",
        {"query_pre_attn_scalar": 12, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        }, "num_hidden_layers": 7, "layer_types": None},
        WIDTHS | {"attention.sliding_window": 6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
                  "rope.freq_base_swa": 100.0}, {},
    ),
    "neutral": ("llama", {}, {"expert_count": 0, "logit_scale": 1.0, "attention.sliding_window": 64}, {}),
    "heads": ("llama", {"head_dim": 4}, {"attention.key_length": 4, "attention.value_length": 4}, {}),
    "linear": (
        "llama", rope(rope_type="linear", factor=2.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {},
    ),
    "linear without a type": ("qwen2", rope(rope_type="linear", factor=2.0), {"rope.scaling.factor": 2.0}, {}),
    "none": ("llama", {}, {"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, {}),
    "yarn": ("qwen2", rope(**YARN), YARN_KEYS, {}),
    "llama 3": (
        "llama", {"rope_parameters": LLAMA3}, {"rope.scaling.original_context_length": 32},
        {gguf_config.ROPE: divisors(LLAMA3)},
    ),
    "any divisors": (
        "llama", rope(**LONG, short_factor=ODD, long_factor=ODD), {}, {gguf_config.ROPE: np.array(ODD, np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_a_gguf_file_computes_what_its_safetensors_form_does(case, tmp_path):
    name, options, keys, tensors = SAME[case]
    model = tiny.model(name, **options)
    plain = tiny.model(name, **{key: value for key, value in options.items() if key != "rope_parameters"})
    model.save_pretrained(tmp_path)
    found = opened(write(model, tmp_path, keys, tensors))
    assert tiny.gap(found, opening.open_snapshot(tmp_path)) <= 2e-5
    assert tiny.gap(model, plain) > 0.1 or "rope_parameters" not in options
    known = shape.of_gguf(tmp_path / "model.gguf")
    assert known == shape.of_model(found) and known.parameters == sum(p.numel() for p in found.parameters())
    found.save_pretrained(tmp_path / "snapshot")
    assert tiny.gap(found, opening.open_snapshot(tmp_path / "snapshot")) == 0


def test_the_rule_of_llama_3_is_recognised(tmp_path):
    """As a reader of the exported config.json expects it; rope_freqs.weight alone left out, logits are off by 1."""
    for original, keys in ((32, {"rope.scaling.original_context_length": 32}), (8192, {}), (64, {})):
        scaling = LLAMA3 | {"original_max_position_embeddings": original, "factor": 32.0, "rope_theta": 500000.0}
        model = tiny.model("llama", rope_parameters=scaling)
        found = opened(write(model, tmp_path, keys, {gguf_config.ROPE: divisors(scaling)}))
        assert found.config.rope_parameters == scaling


# Keys that no config of the family can say, by what has to be named.
REFUSED = {
    "attention.sliding_window": ("llama", {"attention.sliding_window": 16}, {}),
    "llama.rope.dimension_count": ("llama", {"rope.dimension_count": 4}, {}),
    "qwen2.rope.dimension_count": ("qwen2", {"rope.dimension_count": 4}, {}),
    "attention.value_length": ("llama", {"attention.value_length": 4}, {}),
    "attention.causal": ("llama", {"attention.causal": False}, {}),
    "logit_scale": ("llama", {"logit_scale": 0.5}, {}),
    "final_logit_softcapping": ("qwen2", {"final_logit_softcapping": 30.0}, {}),
    "attention.scale": ("llama", {"attention.scale": 0.1}, {}),
    "expert_count": ("llama", {"expert_count": 8}, {}),
    "rope.scaling.type = 'longrope'": ("llama", {"rope.scaling.type": "longrope"}, {}),
    "rope.scaling.attn_factor": ("llama", {**YARN_KEYS, "rope.scaling.attn_factor": 1.2}, {}),
    "rope.scaling.factor": ("llama", {"rope.scaling.factor": 2.0}, {gguf_config.ROPE: np.array(ODD, np.float32)}),
    "a_key_of_tomorrow": ("llama", {"a_key_of_tomorrow": 3}, {}),
    "attention.sliding_window_pattern has 5 values": (
        "llama",
        {"attention.sliding_window_pattern": [1, 0, 1, 0, 1]},
        {},
    ),
    "has no place for blk.0.attn_q_norm.weight": ("llama", {}, {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}),
    "has no place for rope_factors_long.weight": ("llama", {}, {"rope_factors_long.weight": np.ones(4, np.float32)}),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_no_config_can_say_is_refused_by_name(named, tmp_path):
    name, keys, tensors = REFUSED[named]
    write(tiny.model(name), tmp_path, keys, tensors)
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
    if not tensors:
        with pytest.raises(UserError, match=named.replace(".", r"\.")):
            shape.of_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_a_gguf_file_that_lacks_a_tensor_is_one_line(name, tmp_path):
    model = tiny.model(name)
    lost = next(key for key, _ in model.named_parameters() if ".2." in key)
    with pytest.raises(UserError, match=f"the file lacks {lost}$"):
        opened(write(model, tmp_path, left_out=[lost]))


def test_special_tokens_are_those_of_the_file(tmp_path):
    """A class's default would be any word of this vocabulary."""
    for ends, wanted in (({}, None), ({"eos": 5}, 5), ({"eos": 5, "eot": 7, "eom": 5}, [5, 7])):
        keys = {f"tokenizer.ggml.{name}_token_id": end for name, end in ends.items()}
        found = opened(write(tiny.model("llama"), tmp_path, keys))
        assert found.config.eos_token_id == found.generation_config.eos_token_id == wanted
        assert found.config.bos_token_id is None


@pytest.mark.parametrize("ends, wanted", [({}, 9), ({"eos": 5}, [5, 9]), ({"eos": 9}, 9)])
def test_a_special_token_that_ends_a_turn_is_an_end_token(ends, wanted, tmp_path):
    """Only where the tokenizer holds it to be special: the same letters may be an ordinary word."""
    model = tiny.model("llama")
    model.config.eos_token_id = ends.get("eos")
    for special in (False, True):
        token = SimpleNamespace(content="<end_of_turn>", special=special)
        tokens.add_turn_ends(model, SimpleNamespace(added_tokens_decoder={9: token}))
        assert model.config.eos_token_id == (wanted if special else ends.get("eos"))
        assert model.generation_config.eos_token_id == model.config.eos_token_id


def test_the_values_of_a_tensor_are_read(tmp_path):
    values = np.arange(4, dtype=np.float32) + 0.5
    write(tiny.model("llama"), tmp_path, {}, {gguf_config.ROPE: values})
    assert gguf_header.floats(tmp_path / "model.gguf", gguf_config.ROPE) == values.tolist()
    assert torch.tensor(gguf_header.floats(tmp_path / "model.gguf", "output_norm.weight")).shape == (tiny.WIDTH,)
