"""What an extraction sees is what the model's own modules compute, and nothing of it is not finite."""

import pytest
import tiny
import torch

from stages.core.calibration import activations
from stages.core.process.errors import UserError

SITES = ("input", "pre_activation", "post_activation")


@tiny.every_family
def test_sites_are_those_of_the_ffn_and_no_hook_stays(name):
    model, ids = tiny.model(name), tiny.ids()
    family = tiny.family(model)
    (found,) = activations.stream(tiny.view(model), SITES, [ids])
    for layer, block in enumerate(tiny.view(model).blocks):
        linears = tiny.view(model).linears(layer)
        read = found["input"][layer]
        assert torch.allclose(linears[family.activated](read), found["pre_activation"][layer], atol=1e-5)
        answered = linears["out"](found["post_activation"][layer])
        assert torch.allclose(getattr(block, family.ffn)(read), answered, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@tiny.every_family
def test_what_is_not_finite_is_named_by_site_layer_and_batch(name, value):
    model = tiny.model(name)
    family = tiny.family(model)

    batches = activations.stream(tiny.view(model), SITES, [tiny.ids(seed=seed) for seed in range(3)])
    next(batches)
    with torch.no_grad():
        tiny.view(model).linears(3)[family.activated].weight.fill_(value)
    with pytest.raises(UserError, match="pre_activation of layer 3 is not finite in batch 1"):
        next(batches)
