"""Opening a checkpoint: it holds what its config promises, and the config says what it holds, or the door refuses."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from closure import ROOT
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, GPT2LMHeadModel

from stages.core.architecture import opening, shape
from stages.core.architecture.depth import keep_layers
from stages.core.architecture.tokens import end_tokens
from stages.core.forms.structure import Sharing
from stages.core.process.errors import UserError
from stages.core.text.tokenizer import open_tokenizer

WORDS = 2048  # of the bundled model's tokenizer
DOWN = "model.layers.2.mlp.down_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def stock(folder: Path, name: str = "llama", **options) -> Path:
    """A checkpoint with a tokenizer beside it."""
    tiny.model(name, vocab_size=WORDS, **options).save_pretrained(folder)
    open_tokenizer(ROOT / "data" / "model").save_pretrained(folder)
    return folder


def rewrite(folder: Path, change) -> None:
    """Give a checkpoint the tensors that `change` makes of its own."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, name: str = "config.json", **changes) -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def renamed(prefix):
    return lambda tensors: {prefix + key: value for key, value in tensors.items()}


# What happens to tensors, what to config.json, and what the line has to say.
BROKEN = {
    "one lacks": (without(DOWN), {}, f"the file lacks {DOWN}$"),
    "prefix": (renamed("module."), {}, f"lacks lm_head.weight, .* and 59 more; .* no place for module.{EMBEDDING}, .*"),
    "layer more": (dict, {"num_hidden_layers": 4}, "no place for model.layers.4.* and 8 more$"),
    "layer less": (dict, {"num_hidden_layers": 6}, "lacks model.layers.5.* and 8 more$"),
    "shape": (dict, {"intermediate_size": 40}, r"mlp.down_proj.weight \[32, 48\] instead of \[32, 40\]"),
    "vocabulary": (dict, {"vocab_size": 2050}, r"embed_tokens.weight \[2048, 32\] instead of \[2050, 32\]"),
    "other": (lambda t: t | {"score.weight": torch.ones(2, 32)}, {}, "its config has no place for score.weight$"),
    "no head": (dict, {"tie_word_embeddings": False}, "lacks lm_head.weight .*tie_word_embeddings: true"),
    "quantised": (dict, {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
    "own code": (dict, {"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map"),
    "layers differ": (dict, {"per_layer_config": {"1": {"intermediate_size": 40}}}, "per_layer_config"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_is_not_its_configs_is_one_line(case, tmp_path):
    change, config, message = BROKEN[case]
    folder = stock(tmp_path / "model")
    opening.open_source(str(folder), None, None)
    rewrite(folder, change)
    configure(folder, **config)
    for where, tried in {
        "base.model": lambda: opening.open_source(str(folder), None, None),
        "surgery.model": lambda: opening.open_external(str(folder), None, open_tokenizer(folder), WORDS),
        str(folder): lambda: opening.open_snapshot(folder),
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            tried()
        assert str(caught.value).startswith(f"cannot open {where}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["shard", "index entry"])
def test_a_shard_that_is_not_there_is_named(missing, tmp_path):
    folder = stock(tmp_path / "model")
    tiny.model("llama", vocab_size=WORDS).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    opening.open_source(str(folder), None, None)
    shard = sorted(folder.glob("model-*"))[1]
    if missing == "shard":
        shard.unlink()
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"] = {key: name for key, name in index["weight_map"].items() if name != shard.name}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=shard.name if missing == "shard" else "the file lacks"):
        opening.open_source(str(folder), None, None)


def test_parts_that_a_family_does_not_know_are_refused(tmp_path):
    """A GPT-2 that reads an encoder."""
    with pytest.raises(UserError, match="add_cross_attention .* such parts are not supported"):
        opening.open_source(str(stock(tmp_path / "model", "gpt2", add_cross_attention=True)), None, None)


def test_a_variants_checkpoint_of_another_shape_says_both(tmp_path):
    tiny.save(*tiny.shared("gpt2", 2), tmp_path / "shared")
    config = json.loads((tmp_path / "shared/config.json").read_text())
    config["sharing"]["rank"] = 3
    (tmp_path / "shared/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"fit its config.json: .*A \[128, 2\] instead of \[128, 3\]"):
        tiny.load(tmp_path / "shared")


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_not_left_out(whole, tmp_path):
    folder = stock(tmp_path / "model")
    configure(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/model")
    if not whole:
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match="adapter_config.json .* merge it"):
        opening.open_source(str(folder), None, None)


def test_buffers_of_older_versions_are_no_difference(tmp_path):
    """As the hub's gpt2 is stored: no prefix, and masks among the weights."""
    folder = stock(tmp_path / "gpt2", "gpt2")
    masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(folder, lambda tensors: {key.removeprefix("transformer."): v for key, v in tensors.items()} | masks)
    assert tiny.gap(opening.open_source(str(folder), None, None)[0], tiny.model("gpt2", vocab_size=WORDS)) == 0
    folder = stock(tmp_path / "llama")
    rewrite(folder, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert tiny.gap(opening.open_source(str(folder), None, None)[0], tiny.model("llama", vocab_size=WORDS)) == 0


@tiny.every_family
def test_a_folder_without_a_tokenizer_is_one_line(name, tmp_path):
    tiny.model(name).save_pretrained(tmp_path)
    for config in ({}, {"eos_token": "</s>"}):
        configure(tmp_path, "tokenizer_config.json", **config)
        with pytest.raises(UserError, match="has no tokenizer: tokenizer.json"):
            opening.open_source(str(tmp_path), None, None)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path):
    folder = stock(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokenizer["model"]["vocab"][last] = 5000  # a gap in the numbers: there are still no more tokens than rows
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has 5001 tokens, its model only 2048"):
        opening.open_source(str(folder), None, None)


# Embeddings, tied or not


def skipped(model, layer: int, text=None):
    """The logits of a model, one of whose layers answers what it reads."""
    block = tiny.view(model).blocks[layer]
    handle = block.register_forward_hook(lambda _, args, answer: args[0])
    try:
        return tiny.logits(model, text)
    finally:
        handle.remove()


def left_out(model, layer: int):
    """A new model without one layer."""
    kept = [other for other in range(model.config.num_hidden_layers) if other != layer]
    return keep_layers(tiny.view(model), kept).model


def everywhere(model, folder: Path):
    """A model as it is in memory, from its checkpoint, as a dense model, and from that one's folder."""
    yield model
    tiny.save(model, Sharing(), folder / "checkpoint")
    yield tiny.load(folder / "checkpoint")[0]
    yield tiny.dense(model)
    tiny.dense(model).save_pretrained(folder / "dense")
    yield opening.open_snapshot(folder / "dense")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_file_with_a_head_of_its_own_is_untied_whatever_config_says(name, tmp_path):
    folder = stock(tmp_path / "model", name)
    rewrite(folder, lambda tensors: tensors | {HEAD: 0.2 * torch.randn(WORDS, 32)})
    configure(folder, tie_word_embeddings=True)
    model, _ = opening.open_source(str(folder), None, None)
    assert model.config.tie_word_embeddings is False and not shape.of_model(model).tied
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")[HEAD])
    assert shape.of_model(model).parameters == sum(parameter.numel() for parameter in model.parameters())
    for found in everywhere(model, tmp_path / "whole"):
        assert tiny.gap(found, model) == 0
    for found in everywhere(left_out(model, 1), tmp_path / "shallow"):
        assert (tiny.logits(found) - skipped(model, 1)).abs().max() == 0


def test_a_tie_is_read_off_the_model_not_off_its_config(tmp_path):
    model = tiny.model("llama")
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    for found in everywhere(left_out(model, 2), tmp_path):
        assert (tiny.logits(found) - skipped(model, 2)).abs().max() == 0


def test_a_file_with_the_same_head_twice_stays_tied(tmp_path):
    folder = stock(tmp_path / "model")
    rewrite(folder, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    assert shape.of_model(opening.open_source(str(folder), None, None)[0]).tied


# A layer's number


@pytest.mark.parametrize("layer", range(4))
def test_a_layer_that_moves_up_attends_as_it_did(layer, tmp_path):
    """GPT-2 may divide a layer's attention scores by its number; without this the logits are off by 0.4 of 5.6."""
    model = tiny.model("gpt2", n_layer=4, scale_attn_by_inverse_layer_idx=True)
    wanted = skipped(model, layer)
    for found in everywhere(left_out(model, layer), tmp_path):
        assert (tiny.logits(found) - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    assert tiny.gap(model, tiny.model("gpt2", n_layer=4)) > 0.1


def test_windows_of_attention_move_with_their_layers(tmp_path):
    """Qwen2's later layers see a window only; which ones follows from their numbers."""
    options = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = tiny.model("qwen2", **options)
    assert tiny.gap(model, tiny.model("qwen2")) > 0.1
    for layer in range(tiny.LAYERS):
        for found in everywhere(left_out(model, layer), tmp_path / str(layer)):
            assert (tiny.logits(found) - skipped(model, layer)).abs().max() == 0
            written = found.generate(tiny.ids(1, 12), max_new_tokens=6, do_sample=False)
            assert torch.equal(written[:, 12:], _greedy(found, tiny.ids(1, 12), 6))


@torch.no_grad()
def _greedy(model, ids, count):
    """What a model writes without a cache."""
    for _ in range(count):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[:, -count:]


def test_lists_that_happen_to_be_as_long_as_the_model_is_deep_stay_whole():
    ends, names = [3, 5, 7, 9, 11], ["GPT2LMHeadModel"] * tiny.LAYERS
    model = tiny.model("gpt2", eos_token_id=ends, architectures=names, task_specific_params={"a": {"b": [0] * 5}})
    shallow = left_out(model, 0)
    assert shallow.config.eos_token_id == ends and len(shallow.config.architectures) == tiny.LAYERS
    assert end_tokens(shallow) == ends


# End tokens


def test_all_end_tokens_are_kept(tmp_path):
    folder = stock(tmp_path / "model", eos_token_id=3)
    configure(folder, "generation_config.json", eos_token_id=[7, 3, 9], temperature=0.6, do_sample=True)
    model, _ = opening.open_source(str(folder), None, None)
    assert end_tokens(model) == [3, 7, 9]
    model.save_pretrained(tmp_path / "snapshot")
    snapshot = opening.open_snapshot(tmp_path / "snapshot")
    for found in (snapshot, *everywhere(left_out(snapshot, 1), tmp_path)):
        assert end_tokens(found) == found.generation_config.eos_token_id == found.config.eos_token_id == [3, 7, 9]
    assert GenerationConfig.from_pretrained(tmp_path / "snapshot").temperature == 0.6


def test_a_model_without_an_end_token_has_none(tmp_path):
    folder = stock(tmp_path / "model")
    for found in everywhere(opening.open_source(str(folder), None, None)[0], tmp_path):
        assert end_tokens(found) == [] and found.config.eos_token_id is None
    assert end_tokens(GPT2LMHeadModel(tiny.model("gpt2").config.__class__(vocab_size=9, n_embd=4, n_head=1))) == []


def test_the_embedded_models_snapshot_is_its_very_files(tmp_path):
    opening.open_source(str(ROOT / "data/model"), None, None)[0].save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "data/model" / path.name).read_bytes()
    assert end_tokens(opening.open_snapshot(tmp_path)) == [0]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_weight_is_drawn_at_random_that_a_file_or_a_copy_overwrites(name, tmp_path):
    """Drawing GPT-2's weights takes twenty times as long as to read them (4.3 s against 0.2 s of a core)."""

    def drawn(work):
        before = torch.random.get_rng_state()
        return work(), not torch.equal(torch.random.get_rng_state(), before)

    built, sharing = tiny.shared(name, rank=2)
    tiny.save(built, sharing, tmp_path / "shared")
    tiny.save(tiny.model(name), Sharing(), tmp_path / "stock")
    (shared, _), first = drawn(lambda: tiny.load(tmp_path / "shared"))
    (stock, _), second = drawn(lambda: tiny.load(tmp_path / "stock"))
    others = [
        drawn(lambda: tiny.dense(shared))[1],
        drawn(lambda: keep_layers(tiny.view(stock), [0, 1]))[1],
        drawn(lambda: opening.dequantised(stock))[1],
    ]
    assert not any([first, second, *others])
    assert drawn(lambda: tiny.model(name))[1]  # a model that no file fills is drawn
