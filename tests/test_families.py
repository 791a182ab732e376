"""The table of families, the canonical FFN's meaning and the recording of activations, on every family."""

import pytest
import tiny
import torch
from closure import ROOT

from stages.core.architecture.families import FAMILIES, family_of
from stages.core.calibration import activations
from stages.core.process.errors import UserError


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
