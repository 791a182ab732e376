"""The divergence of a model's answers from another's: by hand, never negative, and a bound where little is kept."""

import pytest
import tiny
import torch

from stages.core.process.errors import UserError
from stages.core.tasks import likeliest
from stages.core.tasks.images import ImageClassification
from stages.core.text.corpus import Stream

TEXT = Stream(tiny.ids(1, 50, seed=3)[0])


def by_hand(one, other):
    """The mean KL divergence over the tokens that windows of 12 score."""
    total, count = 0.0, 0
    for window in TEXT.tokens.split(12):
        with torch.no_grad():
            p, q = (model(window[None]).logits[0, :-1].double().log_softmax(-1) for model in (one, other))
        total, count = total + (p.exp() * (p - q)).sum().item(), count + len(p)
    return total / count


@pytest.mark.parametrize("kept", [tiny.VOCABULARY, 5, 1])
def test_divergence_is_the_mean_kl_or_less(monkeypatch, kept):
    monkeypatch.setattr(likeliest, "REFERENCE", kept * 8 * len(TEXT))
    monkeypatch.setattr(likeliest, "FEW", 0)
    one, other = tiny.model("llama"), tiny.model("llama", seed=1)
    reference = tiny.TASK.reference(one, TEXT)
    assert all(tokens.shape[1] == kept for tokens, *_ in reference.batches) and reference.words is None
    assert tiny.TASK.divergence(one, TEXT, reference) == pytest.approx(0, abs=1e-6)
    found, whole = tiny.TASK.divergence(other, TEXT, reference), by_hand(one, other)
    assert found == pytest.approx(whole, rel=1e-5) if kept == tiny.VOCABULARY else 0 < found < whole


@tiny.every_family
def test_of_a_large_vocabulary_only_words_that_some_answer_thinks_likely_are_compared(name, monkeypatch):
    """By hand: the divergence among these words, times the probability that it is any of them."""
    monkeypatch.setattr(likeliest, "REFERENCE", 2 * 8 * len(TEXT))
    monkeypatch.setattr(likeliest, "FEW", 1)
    one, other = tiny.model(name), tiny.model(name, seed=1)
    total, count = 0.0, 0
    with torch.no_grad():
        rows = [[model(part[None]).logits[0, :-1].double() for model in (one, other)] for part in TEXT.tokens.split(12)]
    words = torch.cat([p.topk(2).indices.flatten() for p, _ in rows]).unique()
    for p, q in rows:
        mass, top = p.softmax(-1)[:, words].sum(-1, keepdim=True), p[:, words].topk(2).indices
        p, q = (logits[:, words].softmax(-1) for logits in (p, q))
        near = [torch.cat([x.gather(-1, top), 1 - x.gather(-1, top).sum(-1, keepdim=True)], -1) for x in (p, q)]
        total, count = total + (mass * near[0] * (near[0] / near[1]).log()).sum().item(), count + len(p)
    reference = tiny.TASK.reference(one, TEXT)
    assert torch.equal(reference.words, words) and 2 < len(words) < tiny.VOCABULARY
    assert tiny.TASK.divergence(other, TEXT, reference) == pytest.approx(total / count, rel=1e-4)
    assert tiny.TASK.divergence(other, TEXT, reference) < by_hand(one, other)
    assert tiny.TASK.divergence(one, TEXT, reference) == pytest.approx(0, abs=1e-6)


def test_a_model_is_whole_again_whatever_happens():
    model = tiny.model("gpt2")
    before = dict(model.named_parameters())
    with pytest.raises(UserError), likeliest.narrowed(model, torch.tensor([3, 1])):
        assert model(TEXT.tokens[None, :9]).logits.shape[-1] == 2
        raise UserError("any")
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(value is before[name] for name, value in model.named_parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_divergence_of_images_is_the_mean_kl_over_labels(monkeypatch):
    monkeypatch.setattr(ImageClassification, "logits", lambda self, model, images: model)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(6, 4, generator=generator) for _ in range(2))
    task = ImageClassification(2)
    reference = task.reference(one, None)
    logs = other.double().log_softmax(1)
    wanted = torch.nn.functional.kl_div(logs, reference, reduction="batchmean", log_target=True).item()
    assert task.divergence(other, None, reference) == pytest.approx(wanted) and wanted > 0
    assert task.divergence(one, None, reference) == 0
