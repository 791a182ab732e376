"""The table of families, the canonical FFN's meaning and the recording of activations, on every family."""

import pytest
import tiny
import torch

from stages.core.architecture import ffn
from stages.core.architecture.families import FAMILIES, family_of
from stages.core.calibration import activations
from stages.core.process.errors import UserError


def computed(mlp, family, weights, x):
    """Activations by site, and the output, from the canonical FFN alone."""
    act = getattr(mlp, "act", None) or mlp.act_fn
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


@pytest.mark.parametrize("unknown", ["bloom", "GPT2", ""])
def test_unsupported_type_lists_the_supported(unknown):
    with pytest.raises(UserError) as caught:
        family_of(unknown)
    assert all(name in str(caught.value) for name in [repr(unknown), *tiny.CONFIGS])


@tiny.every_family
def test_canonical_ffn_computes_what_the_module_computes(name):
    model, x = tiny.model(name), torch.randn(7, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    family = tiny.family(model)
    assert len(family.blocks(model)) == tiny.LAYERS
    for layer, block in enumerate(family.blocks(model)):
        mlp = getattr(block, family.ffn)
        _, expected = computed(mlp, family, ffn.read(model, family, layer), x)
        torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", activations.SITES)
@tiny.every_family
def test_recorded_activations_are_those_of_the_canonical_ffn(name, site):
    model = tiny.model(name)
    family, inputs = tiny.family(model), []
    mlps = [getattr(block, family.ffn) for block in family.blocks(model)]
    handles = [mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1))) for mlp in mlps]
    (seen,) = activations.stream(model, family, (site,), [tiny.ids()])
    for handle in handles:
        handle.remove()
    for layer, mlp in enumerate(mlps):
        expected, _ = computed(mlp, family, ffn.read(model, family, layer), inputs[layer])
        torch.testing.assert_close(seen[site][layer], expected[site], atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_after_an_error():
    model = tiny.model("gpt2")
    with pytest.raises(KeyError), activations.recording(model, tiny.family(model), ("post_activation",)):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@tiny.every_family
def test_activations_that_are_not_finite_are_named(name):
    model = tiny.model(name)
    family = tiny.family(model)
    with torch.no_grad():
        family.linears(model, 3)["in"].weight.fill_(torch.inf)
    with pytest.raises(UserError, match="layer 3 .* batch 0"):
        list(activations.stream(model, family, ("input", "post_activation"), [tiny.ids()]))
