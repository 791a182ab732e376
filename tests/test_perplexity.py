"""Perplexity: known values, every token scored once, and agreement with the loop that everybody uses."""

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.process.errors import UserError
from stages.core.tasks.language import Language, perplexity, spans
from stages.core.text import corpus

TEXT = tiny.ids(1, 101)[0]


class Remembering(torch.nn.Module):
    """Gives the right next token probability 0.1 after one token of context, 0.2 after two, and so on."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids, use_cache):
        probability = torch.full((*ids.shape, 9), 0.0)
        for position in range(ids.shape[1] - 1):
            right = (position + 1) / 10
            probability[:, position] = (1 - right) / 8
            probability[torch.arange(len(ids)), position, ids[:, position + 1]] = right
        return SimpleNamespace(logits=probability.log())


@torch.no_grad()
def familiar(model, text, context, stride):
    """The sliding window of the transformers documentation, with its losses weighted by their tokens."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(text), stride):
        end = min(begin + context, len(text))
        ids = text[None, begin:end]
        labels = ids.clone()
        labels[:, : -(end - previous)] = -100
        scored = (labels[:, 1:] != -100).sum().item()
        if scored:
            total, count = total + model(ids, labels=labels).loss.item() * scored, count + scored
        previous = end
        if end == len(text):
            return math.exp(total / count)


@tiny.every_family
def test_a_uniform_model_has_the_vocabulary_size(name):
    model = tiny.model(name)
    for parameter in model.parameters():
        parameter.detach().zero_()
    assert perplexity(model, TEXT, 32, 16) == pytest.approx(tiny.VOCABULARY, rel=1e-6)


@pytest.mark.parametrize(
    "context, stride, probabilities",
    [
        (5, 5, [0.1, 0.2, 0.3, 0.4]),
        (4, 1, [0.1, 0.2, 0.3, 0.3]),
        (3, 2, [0.1, 0.2, 0.1, 0.2]),
        (3, 1, [0.1, 0.2, 0.2, 0.2]),
        (3, 3, [0.1, 0.2, 0.1]),
        (2, 2, [0.1, 0.1]),
    ],
)
def test_five_tokens_by_hand(context, stride, probabilities):
    expected = math.prod(probabilities) ** (-1 / len(probabilities))
    for batch_size in (1, 2, 3):
        found = perplexity(Remembering(), torch.tensor([3, 1, 4, 1, 5]), context, stride, batch_size)
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("context, stride", [(32, 32), (32, 16), (20, 7), (64, 1)])
@tiny.every_family
def test_batch_size_changes_nothing(name, context, stride):
    alone = perplexity(tiny.model(name), TEXT, context, stride, 1)
    for batch_size in (2, 4):
        assert perplexity(tiny.model(name), TEXT, context, stride, batch_size) == pytest.approx(alone, rel=1e-6)


@tiny.every_family
def test_windows_that_do_not_overlap_are_plain_chunks(name):
    model, total, count = tiny.model(name), 0.0, 0
    for chunk in TEXT.split(32):
        chosen = tiny.logits(model, chunk[None])[0, :-1].double().log_softmax(-1)
        total -= chosen.gather(1, chunk[1:, None]).sum().item()
        count += len(chunk) - 1
    assert perplexity(model, TEXT, 32, 32, 2) == pytest.approx(math.exp(total / count), rel=1e-6)


@pytest.mark.parametrize("length", [101, 64, 65, 33, 2])
@pytest.mark.parametrize("context, stride", [(32, 32), (32, 16), (32, 31), (20, 7)])
@tiny.every_family
def test_equals_the_familiar_loop(name, context, stride, length):
    model, text = tiny.model(name), TEXT[:length]
    expected = familiar(model, text, context, stride)
    assert perplexity(model, text, context, stride, 4) == pytest.approx(expected, rel=1e-5)


@given(length=st.integers(2, 300), context=st.integers(2, 64), data=st.data())
def test_every_token_is_scored_once(length, context, data):
    stride = data.draw(st.integers(1, context))
    found = spans(length, context, stride)
    scored = [token for begin, end, first in found for token in range(first, end)]
    missed = range(0, length, stride) if stride == context else [0]
    assert scored == [token for token in range(length) if token not in missed]
    for begin, end, first in found:
        assert begin % stride == 0 and begin < first < end <= length and end - begin <= context
        assert begin == 0 or first - begin >= context - stride


@pytest.mark.parametrize("context, stride", [(32, 32), (32, 16), (32, 31), (20, 7), (2, 1)])
def test_every_window_begins_with_the_start_token_and_every_token_is_scored(context, stride):
    model, start, step, total, scored = tiny.model("llama"), 7, min(stride, context - 1), 0.0, 0
    for begin in range(0, len(TEXT), step):
        window = torch.cat([torch.tensor([start]), TEXT[begin : begin + context - 1]])
        losses = -tiny.logits(model, window[None])[0, :-1].double().log_softmax(-1)
        new = begin + len(window) - 1 - scored
        if new > 0:
            total += losses.gather(1, window[1:, None])[-new:].sum().item()
            scored += new
    assert scored == len(TEXT)
    found = perplexity(model, TEXT, context, stride, 4, start=start)
    assert found == pytest.approx(math.exp(total / scored), rel=1e-6)
    assert found == Language(context, stride, 4).score(model, corpus.Stream(TEXT, start))
    assert found != pytest.approx(Language(context, stride, 4).score(model, corpus.Stream(TEXT)), rel=1e-3)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_too_short_is_refused(length):
    with pytest.raises(UserError, match=f"at least 2 tokens, the text has {length}"):
        perplexity(tiny.model("gpt2"), TEXT[:length], 32, 16)


@tiny.every_family
def test_a_broken_model_is_named_with_its_tokens(name):
    model = tiny.model(name)
    with torch.no_grad():
        model.get_output_embeddings().weight[int(TEXT[70])] = torch.nan
    with pytest.raises(UserError, match="not finite in tokens 0 to 32"):
        perplexity(model, TEXT, 32, 32)


def test_a_perplexity_beyond_float64_is_refused():
    model = tiny.model("qwen2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e4)
    with pytest.raises(UserError, match="no float64 value"):
        perplexity(model, TEXT, 32, 32)


@pytest.mark.parametrize("start", [None, 7])
def test_the_kept_losses_are_those_that_perplexity_is_of(start):
    task, text = Language(32, 20, 4), corpus.Stream(TEXT, start)
    found = task.measure(tiny.model("llama"), text, others=None)
    assert found.figures == {"perplexity": task.score(tiny.model("llama"), text)}
    assert len(found.losses) == len(TEXT) - (start is None)
    assert math.exp(found.losses.mean()) == pytest.approx(found.figures["perplexity"], rel=1e-12)
