"""The divergence of a model's answers from another's: by hand, never negative, and a bound where little is kept."""

import pytest
import tiny
import torch

from stages.core.tasks import language
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
    monkeypatch.setattr(language, "REFERENCE", kept * 8 * len(TEXT))
    one, other = tiny.model("llama"), tiny.model("llama", seed=1)
    reference = tiny.TASK.reference(one, TEXT)
    assert all(tokens.shape[1] == kept for tokens, _ in reference)
    assert tiny.TASK.divergence(one, TEXT, reference) == pytest.approx(0, abs=1e-6)
    found, whole = tiny.TASK.divergence(other, TEXT, reference), by_hand(one, other)
    assert found == pytest.approx(whole, rel=1e-5) if kept == tiny.VOCABULARY else 0 < found < whole


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
