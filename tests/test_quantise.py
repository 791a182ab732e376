"""Eight bits keep the structure of a model: what is shared is quantised once, head and embeddings not at all."""

import pytest
import tiny
import tiny_vision
import torch
from torch import nn

from stages.commands import quantise
from stages.core.forms import structure
from stages.core.forms.dense import to_dense
from stages.core.forms.structure import Sharing
from stages.core.process.errors import UserError

FORMS = {
    "dense": Sharing(),
    "shared": Sharing(groups=[[0, 1, 2]], rank=2, biases="own"),
    "factored": Sharing(ranks={"1": {"in": 3, "out": 3}}, factored=True),
}


def rounded(matrix):
    """What torchao does, as plain numbers: 127 steps for the largest entry of a row."""
    scale = matrix.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return nn.Parameter((matrix / scale).round() * scale, requires_grad=False)


def made(name, form):
    model = tiny.model(name)
    structure.install(tiny.view(model), FORMS[form])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_shared_stays_shared_and_the_head_stays_as_it_is(name, form):
    model, before = made(name, form), made(name, form)
    before.load_state_dict(model.state_dict())
    seen = []
    quantise.in_eight_bits(model, lambda matrix: seen.append(matrix) or rounded(matrix))
    kept = {id(model.get_output_embeddings().weight), id(model.get_input_embeddings().weight)}
    matrices = [p for p in before.parameters() if p.ndim == 2]
    embeddings = {n for n, p in model.named_parameters() if id(p) in kept or "wpe" in n}
    assert len(seen) == len(matrices) - len(embeddings)
    assert quantise.stored_bytes(model) == quantise.stored_bytes(before)  # the same elements, each once
    gap = (model(torch.arange(8)[None]).logits - before(torch.arange(8)[None]).logits).abs().max()
    assert 0 < gap < 0.05
    assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_the_head_of_an_image_classifier_stays_as_it_is():
    model = tiny_vision.model("vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantise.in_eight_bits(model, rounded)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("layer" in name for name in changed)


def test_torchao_stores_a_byte_an_entry_with_a_scale_and_a_zero_point_a_row():
    pytest.importorskip("torchao")
    model = made("gpt2", "shared")
    dense = to_dense(tiny.view(model))
    for each in (model, dense):
        before = quantise.stored_bytes(each)
        quantise.in_eight_bits(each, quantise.by_torchao())
        assert quantise.stored_bytes(each) < before
    linear = tiny.view(model).linears(0)["in"].base
    rows = linear.weight.shape[0]
    assert quantise.stored_bytes(linear) == linear.weight.numel() + (4 + 1) * rows + linear.bias.nbytes


def test_without_torchao_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="pip install torchao"):
        quantise.by_torchao()
