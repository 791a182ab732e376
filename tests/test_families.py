"""The table of families, the canonical FFN's meaning and the recording of activations, on every family."""

import pytest
import tiny
import torch
from closure import ROOT
from transformers import AutoModelForCausalLM

from stages.core.architecture import depth, ffn, guessing, shape
from stages.core.architecture.families import FAMILIES, Family, family_of
from stages.core.calibration import activations
from stages.core.process.errors import UserError
from stages.core.training import recovery


def computed(mlp, family, weights, x):
    """Activations by site, and the output, from the canonical FFN alone."""
    act = getattr(mlp, family.activation)
    roles = [role for role in family.matrices if role != "out"]
    maps = {role: x @ weights[f"w_{role}"].T + weights.get(f"b_{role}", 0.0) for role in roles}
    pre = maps.pop(family.activated)
    post = act(pre)
    for gated in maps.values():
        post = post * gated
    sites = {"input": x, "pre_activation": pre, "post_activation": post}
    return sites, post @ weights["w_out"].T + weights.get("b_out", 0.0)


def test_every_supported_type_has_a_tiny_model():
    assert {name for family in FAMILIES for name in family.model_types} == set(tiny.CONFIGS)


def test_only_the_room_of_architecture_asks_for_a_family():
    asking = {path for path in (ROOT / "stages").rglob("*.py") if "family_of" in path.read_text()}
    assert asking and {path.parent.name for path in asking} == {"architecture"}


def test_a_view_knows_the_model_s_layers_and_sizes():
    for name in tiny.CONFIGS:
        view = tiny.view(tiny.model(name))
        assert view.depth == len(view.blocks) == len(view.names) == tiny.LAYERS == view.shape.layers
        assert all(view.model.get_submodule(path) is block for path, block in zip(view.names, view.blocks))
        for layer in range(view.depth):
            assert (view.width(layer), view.neurons(layer)) == (view.shape.width, view.shape.hidden)
            assert {role: view.matrix_shape(layer, role) for role in view.roles} == view.shape.matrices
            assert {id(m) for m in view.linears(layer).values()} <= {id(m) for m in view.ffn(layer).modules()}


@tiny.every_family
def test_a_view_copies_and_replaces_without_touching_another(name):
    view = tiny.view(tiny.model(name))
    other, before = view.copy(), tiny.state(view.model)
    stored, linear = other.tensors(), torch.nn.Identity()
    assert tiny.same(stored, {key: value for key, value in before.items() if key in stored})
    assert len({tensor.data_ptr() for tensor in stored.values()}) == len(stored) == len(list(view.model.parameters()))
    other.replace(2, "out", linear)
    assert other.linears(2)["out"] is linear and tiny.same(tiny.state(view.model), before)
    assert other.linears(1)["out"] is not linear


def test_buffers_that_a_model_saves_are_stored():
    model = tiny.model("gpt2")
    for layer, block in enumerate(tiny.view(model).blocks):
        block.register_buffer("table", torch.full((3,), float(layer)))
        block.register_buffer("scratch", torch.zeros(2), persistent=False)
    names = tiny.view(model).tensors().keys()
    assert [name for name in names if "table" in name] == [f"transformer.h.{layer}.table" for layer in range(5)]
    assert not any("scratch" in name for name in names)


@pytest.mark.parametrize("unknown", ["mamba", "GPT2", ""])
def test_unsupported_type_lists_the_supported(unknown):
    with pytest.raises(UserError) as caught:
        family_of(unknown)
    assert all(name in str(caught.value) for name in [repr(unknown), *tiny.CONFIGS])


@tiny.every_family
def test_canonical_ffn_computes_what_the_module_computes(name):
    model, x = tiny.model(name), torch.randn(7, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    family = tiny.family(model)
    assert len(tiny.view(model).blocks) == tiny.LAYERS
    for layer, block in enumerate(tiny.view(model).blocks):
        _, expected = computed(block.get_submodule(family.ffn), family, tiny.view(model).read(layer), x)
        torch.testing.assert_close(tiny.view(model).compute(layer, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", activations.SITES)
@tiny.every_family
def test_recorded_activations_are_those_of_the_canonical_ffn(name, site):
    model = tiny.model(name)
    family, inputs = tiny.family(model), []
    mlps = [getattr(block, family.ffn) for block in tiny.view(model).blocks]
    handles = [mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1))) for mlp in mlps]
    (seen,) = activations.stream(tiny.view(model), (site,), [tiny.ids()])
    for handle in handles:
        handle.remove()
    for layer, mlp in enumerate(mlps):
        expected, _ = computed(mlp, family, tiny.view(model).read(layer), inputs[layer])
        torch.testing.assert_close(seen[site][layer], expected[site], atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_after_an_error():
    model = tiny.model("gpt2")
    with pytest.raises(KeyError), activations.record_sites(tiny.view(model), ("post_activation",)):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@tiny.every_family
def test_activations_that_are_not_finite_are_named(name):
    model = tiny.model(name)
    with torch.no_grad():
        tiny.view(model).linears(3)["in"].weight.fill_(torch.inf)
    with pytest.raises(UserError, match="layer 3 .* batch 0"):
        list(activations.stream(tiny.view(model), ("input", "post_activation"), [tiny.ids()]))


# Every family, and configs that change its modules

EVERY = [*tiny.CONFIGS, *tiny.VARIANTS]
each = pytest.mark.parametrize("name", EVERY)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@each
def test_the_order_of_neurons_does_not_matter(name):
    model = tiny.model(name)
    before, view = tiny.logits(model), tiny.view(model)
    for layer in range(view.depth):
        stored = view.read(layer)
        view.write(layer, stored)
        assert tiny.same(view.read(layer), stored)
        view.write(layer, ffn.permute(stored, tiny.shuffle(view.neurons(layer), layer)))
        assert not tiny.same(view.read(layer), stored)
    assert relative(tiny.logits(model), before) <= 1e-5


@each
def test_sizes_are_those_of_the_model(name):
    model = tiny.model(name)
    found, view = shape.of_config(model.config.to_dict(), "here"), tiny.view(model)
    assert found == shape.of_model(model) == view.shape
    assert found.parameters == sum(p.numel() for p in model.parameters()) == tiny.count(model)["parameters"]
    assert found.block == sum(p.numel() for p in view.blocks[1].parameters())
    assert found.matrices == {role: view.matrix_shape(2, role) for role in view.roles}
    biases = sum(value.numel() for key, value in view.read(0).items() if key.startswith("b_"))
    assert found.layers * (found.ffn_matrices + biases) == tiny.count(model)["ffn_parameters"]


@torch.no_grad()
@each
def test_what_is_recorded_is_what_the_ffn_computes_and_adds(name):
    """A block whose FFN gives zero lacks what the FFN added: its output, scaled or after a norm."""
    model = tiny.model(name)
    view, ids = tiny.view(model), tiny.ids()
    with depth.record_blocks(view, range(view.depth)) as whole:
        model(ids, use_cache=False)
    layer = view.depth - 1
    last, scale = whole[layer], view.scale(layer)
    for number, record in whole.items():
        assert relative(view.compute(number, record["ffn"][0]), record["ffn"][1]) <= 1e-5
        assert relative(computed(view.ffn(number), view.family, view.read(number), record["ffn"][0])[1],
                        record["ffn"][1]) <= 1e-5  # fmt: skip
    (seen,) = activations.stream(view, ("input", "post_activation"), [ids])
    for number, record in whole.items():
        assert torch.equal(seen["input"][number], record["ffn"][0])
        assert torch.equal(seen["post_activation"][number], record["out"][0])
    added = last["norm"][1] if view.norm_after(layer) is not None else last["ffn"][1]
    added = added if scale is None else scale * added
    view.write(layer, {key: torch.zeros_like(value) for key, value in view.read(layer).items()})
    with depth.record_blocks(view, [layer]) as without:
        model(ids, use_cache=False)
    if name != "opt normed after":  # a norm of the whole stream ends its blocks
        assert relative(without[layer]["block"][1] + added, last["block"][1]) <= 1e-5


@each
def test_fewer_layers_compute_what_the_model_does_without_the_others(name):
    model = tiny.model(name)
    view, kept = tiny.view(model), [0, 2, 3]
    shallow = depth.keep_layers(view, kept)
    assert shallow.depth == len(kept) == shallow.model.config.num_hidden_layers
    for layer in set(range(view.depth)) - set(kept):
        view.blocks[layer].register_forward_hook(
            lambda _, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
        )
    assert relative(tiny.logits(shallow.model), tiny.logits(model)) <= 1e-5


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_shared_it_survives_the_disk_and_generates_and_its_dense_form_is_stock(name, tmp_path):
    model, sharing = tiny.shared(name, rank=2)
    tiny.save(model, sharing, tmp_path / "shared")
    loaded, found = tiny.load(tmp_path / "shared")
    assert found == sharing and type(loaded).__name__.startswith("SharedFfn")
    assert tiny.same(tiny.state(loaded), tiny.state(model)) and tiny.gap(loaded, model) == 0
    assert tiny.count(loaded, found) == tiny.count(model, sharing)
    assert tiny.count(loaded, found)["parameters"] < tiny.count(tiny.model(name))["parameters"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, plain = (loaded.generate(tiny.ids(1, 9), use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)
    tiny.dense(loaded).save_pretrained(tmp_path / "dense")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    assert type(stock) is type(tiny.model(name))
    assert tiny.state(stock).keys() == tiny.state(tiny.model(name)).keys()
    assert relative(tiny.logits(stock), tiny.logits(model)) <= 1e-5


@each
def test_sharing_layers_that_are_alike_is_exact(name):
    twins = tiny.twins(name, "equal")
    shared, _ = tiny.operate(twins, tiny.GROUPS, tiny.calibration(twins), tiny.share(alignment="identity"))
    assert relative(tiny.logits(shared), tiny.logits(twins)) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("how", ["scale", "least_squares"])
@pytest.mark.parametrize("name", ["gpt2", "phi3", "opt", "bloom", "falcon", "granite", "gemma3_text", "olmo2"])
def test_a_repair_brings_the_stream_nearer_to_the_original_s(name, how):
    model = tiny.model(name)
    known, text = tiny.calibration(model), tiny.ids(8, seed=0)

    def error(repair):
        shallow, _ = tiny.operate(model, [[1, 2]], known, tiny.collapse(repair=repair))
        with (
            depth.record_blocks(tiny.view(model), [2]) as wanted,
            depth.record_blocks(tiny.view(shallow), [1]) as found,
        ):
            model(text, use_cache=False), shallow(text, use_cache=False)
        return (wanted[2]["block"][1] - found[1]["block"][1]).pow(2).mean().item()

    assert error(how) < (0.999 if how == "scale" else 0.9) * error("none")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_without_dropout_training_computes_what_evaluation_does(name):
    plain = tiny.model(name).config
    dropouts = [key for key, value in plain.to_dict().items() if "drop" in key and isinstance(value, float | int)]
    model = tiny.model(name, **dict.fromkeys(dropouts, 0.1))
    expected = tiny.logits(model)
    recovery.set_dropout(model.train(), 0.0)
    assert relative(tiny.logits(model), expected) <= 1e-5
    assert all(getattr(model.config, key) == 0.1 for key in dropouts)


def test_norms_after_the_ffn_stay_each_layer_s_own():
    shared, _ = tiny.shared("gemma3_text")
    view = tiny.view(shared)
    norms = [view.norm_after(layer).weight for layer in range(view.depth)]
    assert len({id(norm) for norm in norms}) == view.depth
    assert len({id(view.linears(layer)["out"].weight) for layer in range(view.depth)}) == len(tiny.GROUPS)


# Families that are not in the table


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_guessed_row_is_the_row(name):
    model = tiny.model(name)
    row, found = family_of(name), guessing.guess(model.config.to_dict())
    for key in ("layers", "ffn", "matrices", "activated", "transposed", "fused", "norm_after", "multiplier"):
        assert getattr(found, key) == getattr(row, key), key
    assert name == "falcon" or found.activation == row.activation
    assert eval(guessing.row(found), {"Family": Family, "frozenset": frozenset}) == found


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
WIDE = {"intermediate_size": 48, "num_key_value_heads": 2}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 97, "state_size": 4}


@pytest.mark.parametrize(
    "config, said",
    [
        ({"model_type": "olmo", **SIZES, **WIDE}, r"may do.*Family\(model_types=\('olmo',\), layers='model.layers'"),
        ({"model_type": "mixtral", **SIZES, **WIDE}, "Its FFNs are mixtures of 8 experts"),
        ({"model_type": "qwen2_moe", **SIZES, **WIDE}, "Its FFNs are mixtures of 60 experts"),
        ({"model_type": "mamba", **MAMBA}, "No FFN of two or three matrices"),
        ({"model_type": "nothing", **SIZES}, "model type 'nothing' is not supported"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_unknown_type_is_told_its_row_or_why_it_has_none(config, said):
    with pytest.raises(UserError, match=said) as caught:
        shape.of_config(config, "here")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("here: model type ")


def test_ffns_of_different_width_are_named(monkeypatch):
    model = tiny.model("llama")
    model.model.layers[3].mlp.down_proj = torch.nn.Linear(40, tiny.WIDTH)
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda config: model)
    with pytest.raises(UserError, match="Its FFNs differ: 48 neurons in layer 0, no in layer 3"):
        guessing.guess(model.config.to_dict())
