"""Shared models: what they store, that they survive the disk, and the way back to a stock model."""

import json

import pytest
import tiny
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stages.core.architecture import opening
from stages.core.forms import checkpoint, structure
from stages.core.forms.structure import Sharing
from stages.core.process.artifacts import read_tensors, write_tensors
from stages.core.process.errors import UserError

KINDS = {
    "tied": {"rank": 0, "biases": "own"},
    "tied, biases too": {"rank": 0, "biases": "shared"},
    "deltas": {"rank": 3, "biases": "own"},
    "deltas, biases too": {"rank": 3, "biases": "shared"},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def formula(name, groups=(), rank=0, biases="own", layers=tiny.LAYERS):
    """(all parameters, those of FFNs), from the configuration's numbers alone."""
    d, vocabulary, positions = tiny.WIDTH, tiny.VOCABULARY, tiny.POSITIONS
    if name == "gpt2":
        hidden, matrices = 4 * d, 2
        bias = hidden + d
        attention = 4 * d * d + 4 * d
        around = vocabulary * d + positions * d + 2 * d + layers * 4 * d
    else:
        hidden, matrices, keys = 48, 3, 2 * (d // 4)
        bias = 2 * hidden + d if name == "llama" else 0
        attention = 2 * d * d + 2 * d * keys + (d + 2 * keys if name == "qwen2" else 0)
        around = vocabulary * d * (1 if name == "llama" else 2) + d + layers * 2 * d
    weights = matrices * d * hidden
    surplus = sum(len(group) - 1 for group in groups)
    members = sum(len(group) for group in groups)
    ffns = (layers - surplus) * weights + (layers - surplus * (biases == "shared")) * bias
    ffns += members * matrices * rank * (d + hidden)
    return around + layers * attention + ffns, ffns


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Structure and size


@every_kind
@tiny.every_family
def test_size_is_the_formula_is_what_the_file_stores(name, kind, tmp_path):
    model, sharing = tiny.shared(name, **kind)
    stock = sum(parameter.numel() for parameter in tiny.model(name).parameters())
    total, ffns = formula(name, tiny.GROUPS, **kind)
    expected = {"parameters": total, "dense_parameters": stock, "ffn_parameters": ffns}
    assert tiny.count(model) == expected
    assert stock == formula(name)[0] == sum(p.numel() for p in tiny.dense(model).parameters())
    tiny.save(model, sharing, tmp_path / "model")
    assert sum(t.numel() for t in read_tensors(tmp_path / "model" / "model.safetensors").values()) == total
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == pytest.approx(4 * total, rel=0.1)


@tiny.every_family
def test_size_of_dense_and_collapsed_models_is_the_formula(name):
    model = tiny.model(name)
    shallow, _ = tiny.operate(model, tiny.GROUPS, tiny.calibration(model), tiny.collapse())
    for built, layers in ((model, tiny.LAYERS), (shallow, 2)):
        total, ffns = formula(name, layers=layers)
        assert tiny.count(built) == {"parameters": total, "dense_parameters": total, "ffn_parameters": ffns}


def assert_shared(model, biases):
    """Members of a group hold the very same weights, and biases where those are shared; groups hold different ones."""
    linears = [tiny.view(model).linears(layer) for layer in range(tiny.LAYERS)]
    bases = [{role: getattr(linear, "base", linear) for role, linear in layer.items()} for layer in linears]
    for first, *others in tiny.GROUPS:
        for layer in others:
            for role, base in bases[first].items():
                assert bases[layer][role].weight is base.weight
                assert base.bias is None or (bases[layer][role].bias is base.bias) == (biases == "shared")
    assert all(bases[0][role].weight is not bases[3][role].weight for role in bases[0])


@every_kind
@tiny.every_family
def test_saved_and_loaded_it_is_the_same(name, kind, tmp_path):
    model, sharing = tiny.shared(name, **kind)
    assert_shared(model, kind["biases"])
    tiny.save(model, sharing, tmp_path / "a")
    loaded, found = tiny.load(tmp_path / "a")
    assert found == sharing and not loaded.training
    assert torch.equal(tiny.logits(loaded), tiny.logits(model))
    assert tiny.same(tiny.state(loaded), tiny.state(model))
    assert_shared(loaded, kind["biases"])
    assert tiny.count(loaded) == tiny.count(model)
    tiny.save(model, sharing, tmp_path / "b")
    tiny.save(loaded, found, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@tiny.every_family
def test_collapsed_and_untouched_models_survive_the_disk_too(name, tmp_path):
    model = tiny.model(name)
    shallow = tiny.operate(model, tiny.GROUPS, tiny.calibration(model), tiny.collapse())[0]
    for built in (model, shallow):
        tiny.save(built, Sharing(), tmp_path / "model")
        loaded, sharing = tiny.load(tmp_path / "model")
        assert sharing == Sharing() and torch.equal(tiny.logits(loaded), tiny.logits(built))


@tiny.every_family
def test_a_checkpoint_of_either_kind_is_opened(name, tmp_path):
    model, sharing = tiny.shared(name)
    tiny.save(model, sharing, tmp_path / "shared")
    tiny.dense(model).save_pretrained(tmp_path / "stock")
    for kind, wanted in (("shared", sharing), ("stock", Sharing())):
        opened, found = checkpoint.load(tmp_path / kind)
        assert found == wanted and not opened.model.training and tiny.gap(opened.model, model) < 1e-5


def test_a_group_of_one_is_the_dense_model():
    model, other = tiny.model("qwen2"), tiny.model("qwen2")
    structure.install(tiny.view(other), Sharing([[2]]))
    assert tiny.gap(model, other) == 0 and tiny.count(other) == tiny.count(model)


def test_the_norm_of_a_delta_is_the_frobenius_norm():
    model, _ = tiny.shared("llama", 5)
    for delta in structure.deltas(model):
        torch.testing.assert_close(delta.squared_norm(), delta.delta().square().sum(), rtol=1e-5, atol=0)
    assert len(list(structure.deltas(model))) == 3 * tiny.LAYERS


# Damage


def without_one(tensors):
    tensors.pop(sorted(tensors)[-1])


def with_one_more(tensors):
    tensors["surplus.weight"] = torch.zeros(3)


def transposed(tensors):
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and len(set(tensor.shape)) == 2)
    tensors[name] = tensors[name].T


@pytest.mark.parametrize("damage", [without_one, with_one_more, transposed])
@every_kind
@tiny.every_family
def test_tensors_that_do_not_fit_are_refused(name, kind, damage, tmp_path):
    tiny.save(*tiny.shared(name, **kind), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = read_tensors(file)
    damage(tensors)
    write_tensors(file, tensors)
    with pytest.raises(UserError, match=f"{file} does not fit its config.json"):
        tiny.load(tmp_path / "model")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("left", [0, 7, 100, -1, None])
def test_files_cut_short_or_missing_are_refused(file, left, tmp_path):
    tiny.save(*tiny.shared("gpt2"), tmp_path / "model")
    path = tmp_path / "model" / file
    whole = path.read_bytes().rstrip(b"\n")
    path.unlink() if left is None else path.write_bytes(whole[:left])
    with pytest.raises(UserError, match=str(path)):
        tiny.load(tmp_path / "model")


@pytest.mark.parametrize("config", [[], {}, {"model_type": "other"}, {"model_type": "shared_ffn"}])
def test_a_config_of_no_model_is_refused(config, tmp_path):
    tiny.save(*tiny.shared("gpt2"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=str(tmp_path)):
        tiny.load(tmp_path)


@every_kind
@tiny.every_family
def test_stock_classes_refuse_a_shared_checkpoint(name, kind, tmp_path, monkeypatch):
    """As long as our module is not imported."""
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, checkpoint.MODEL_TYPE)
    tiny.save(*tiny.shared(name, **kind), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "shared_ffn"
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False)


# The way back


@every_kind
@tiny.every_family
def test_dense_opens_in_the_stock_class(name, kind, tmp_path):
    model, _ = tiny.shared(name, **kind)
    before = tiny.state(model)
    dense = tiny.dense(model)
    dense.save_pretrained(tmp_path)
    opened, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(tiny.logits(opened), tiny.logits(dense))
    assert tiny.gap(opened, model) <= (1e-5 if kind["rank"] else 0)
    assert tiny.same(tiny.state(model), before)
    assert_shared(model, kind["biases"])
    assert all(p.requires_grad for p in opened.parameters())


@tiny.every_family
def test_layers_of_the_dense_model_are_independent(name):
    dense = tiny.dense(tiny.shared(name)[0])
    others = [tiny.view(dense).read(layer) for layer in range(1, tiny.LAYERS)]
    tiny.view(dense).write(0, {key: 0 * value for key, value in tiny.view(dense).read(0).items()})
    assert all(tiny.same(tiny.view(dense).read(layer), other) for layer, other in enumerate(others, start=1))


@tiny.every_family
def test_weights_yet_to_come_are_not_drawn(name):
    """Nothing is taken from the random state, and what is tied stays so."""
    config, before = tiny.model(name).config, torch.get_rng_state()
    model = opening.blank(config.to_dict())
    assert torch.equal(torch.get_rng_state(), before)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
