"""Permutations of an FFN's neurons: they change nothing, and can be undone to the bit."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import ffn


def shuffled(model, keep=()):
    """The model with every FFN's neurons in another order; the tensors named in `keep` stay behind."""
    other = copy.deepcopy(model)
    for layer in range(tiny.LAYERS):
        before = tiny.view(model).read(layer)
        after = ffn.permute(before, tiny.shuffle(tiny.view(model).neurons(0), layer))
        tiny.view(other).write(layer, {**after, **{name: before[name] for name in keep}})
    return other


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@tiny.every_family
def test_permutation_leaves_logits(name, dtype, tolerance):
    model = tiny.model(name).to(dtype)
    other = shuffled(model)
    assert not tiny.same(tiny.state(model), tiny.state(other))
    assert tiny.gap(model, other) <= tolerance


@pytest.mark.parametrize(
    "name, forgotten",
    [("gpt2", "b_in"), ("gpt2", "w_out"), ("llama", "b_gate"), ("mistral", "w_gate"), ("qwen2", "w_in")],
)
def test_a_forgotten_tensor_would_show(name, forgotten):
    model = tiny.model(name)
    assert tiny.gap(model, shuffled(model, keep=[forgotten])) > 0.1


@given(width=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 999))
def test_inverse_restores_every_bit(width, size, seed):
    torch.manual_seed(seed)
    shapes = {"w_in": (width, size), "w_gate": (width, size), "w_out": (size, width)}
    shapes |= {"b_in": (width,), "b_gate": (width,), "b_out": (size,)}
    before, order = {key: torch.randn(shape) for key, shape in shapes.items()}, torch.randperm(width)
    after = ffn.permute(before, order)
    assert torch.equal(after["w_out"][:, 0], before["w_out"][:, order[0]])
    assert torch.equal(after["b_out"], before["b_out"])
    assert tiny.same(ffn.permute(after, order.argsort()), before)


@tiny.every_family
def test_read_and_write_are_inverse_to_the_bit(name):
    model, other = tiny.model(name), tiny.model(name, seed=1)
    family = tiny.family(model)
    value = tiny.view(model).read(2)
    tiny.view(other).write(2, value)
    assert tiny.same(tiny.view(other).read(2), value)
    inside = f"{family.layers}.2.{family.ffn}."
    states = tiny.state(model), tiny.state(other), tiny.state(tiny.model(name, seed=1))
    for key in states[0]:
        assert torch.equal(states[1][key], states[0 if key.startswith(inside) else 2][key]), key


@tiny.every_family
def test_what_is_read_is_a_copy_with_the_hidden_axis_first(name):
    model = tiny.model(name)
    before = tiny.state(model)
    value, width = tiny.view(model).read(1), tiny.view(model).neurons(0)
    assert value["w_in"].shape == (width, tiny.WIDTH) and value["w_out"].shape == (tiny.WIDTH, width)
    for tensor in value.values():
        tensor.zero_()
    assert tiny.same(tiny.state(model), before)
