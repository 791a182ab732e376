"""The sentiment task: padding has no say, what trains is what was asked for, scores are those of the reference."""

import numpy as np
import pytest
import tiny
import torch
from closure import ROOT
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.core.evaluation import classification
from stages.core.process.errors import UserError
from stages.core.settings.texts import LabelledDataset, Reviews
from stages.core.settings.trainings import HeadRecipe
from stages.core.tasks import intervals
from stages.core.text import labelled, sources
from stages.core.training import recovery

ROWS = [tiny.ids(1, length, seed=length)[0] for length in (3, 9, 5, 12, 7, 4, 8, 6)]
LABELS = torch.tensor([int(row[-1]) % 2 for row in ROWS])


def recipe(**changes):
    usual = dict(
        train="all", epochs=12, batch_size=4, learning_rate={"head": 1e-2, "model": 1e-3}, warmup=0.1,
        weight_decay=0.0, clip=1.0, seeds=[0],
    )  # fmt: skip
    return HeadRecipe(**{**usual, **changes})


@tiny.every_family
def test_a_rows_state_is_its_own_last_tokens_whatever_it_is_batched_with(name):
    model = tiny.model(name)
    found = classification.features(model, ROWS, 3)
    for row, state in zip(ROWS, found):
        with torch.no_grad():
            alone = model(row[None], output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(state, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", ["head", "deltas", "all"])
@tiny.every_family
def test_only_what_was_asked_for_moves_and_the_rows_are_learnt(name, what):
    model, sharing = tiny.shared(name, 3)
    before = tiny.state(model)
    parts = {} if what == "head" else recovery.parts(tiny.view(model), sharing.groups, what)
    tuned = [parameter for chosen in parts.values() for parameter in chosen]
    states = classification.features(model, ROWS, 4)
    head = classification.fit(model, tuned, ROWS, LABELS, states, recipe(epochs=40), 0)
    moved = {key for key, value in tiny.state(model).items() if not torch.equal(value, before[key])}
    assert bool(moved) == (what != "head")
    if what == "deltas":
        assert all(key.endswith((".A", ".B")) for key in moved)
    answers = classification.probabilities(head, classification.features(model, ROWS, 4))
    assert torch.equal(answers.argmax(1), LABELS)
    torch.testing.assert_close(answers.sum(1), torch.ones(len(ROWS)))


@pytest.mark.parametrize("what", ["head", "all"])
def test_rows_of_like_length_are_trained_together_and_a_head_alone_has_no_rows(what, monkeypatch):
    seen = []
    monkeypatch.setattr(classification, "train", lambda *arguments, lengths, **_: seen.append(lengths))
    model = tiny.model("gpt2")
    tuned = [] if what == "head" else list(model.parameters())
    classification.fit(model, tuned, ROWS, LABELS, torch.randn(len(ROWS), 4), recipe(), 0)
    assert (seen[0] is None) if what == "head" else seen[0].tolist() == [len(row) for row in ROWS]


def test_the_same_seed_gives_the_same_head():
    def weights(seed):
        model = tiny.model("gpt2")
        states = classification.features(model, ROWS, 4)
        return classification.fit(model, [], ROWS, LABELS, states, recipe(), seed).head.weight

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_scores_are_those_of_sklearn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = zip(*pairs)
    found = intervals.scores(labels, predicted)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]


def test_interval_and_majority_by_hand():
    # Wilson's interval of 8 in 10 in closed form, z = 1.959964.
    z, p, n = 1.959964, 0.8, 10
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = intervals.scores([1] * 10, [1] * 8 + [0] * 2)
    assert found["accuracy_low"] == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-6)
    assert found["accuracy_high"] == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-6)
    assert found["majority"] == 1


FILES = ROOT / "data/lexicon.yaml", ROOT / "data/reviews.yaml"
SOURCE = Reviews(kind="reviews", seed=0, train=400, test=200)


def test_reviews_are_balanced_repeatable_and_apart():
    train, test = (sources.labelled(SOURCE, split, *FILES) for split in ("train", "test"))
    assert train == sources.labelled(SOURCE, "train", *FILES)
    assert len(train) == 400 and sum(label for _, label in train) == 200
    labelled.check(train, test)
    assert all(text.endswith(".") and not set(text) & set("<>()|") for text, _ in train)


def test_counting_words_does_not_tell_the_labels_apart():
    plots = YAML(typ="safe").load(FILES[1].read_text())["plots"]
    negative, positive = (
        [sorted(way.replace("blame", "praise").replace("<bad>", "<good>").split()) for way in plots[name].splitlines()]
        for name in ("negative", "positive")
    )
    assert negative == positive
    emotive = [word for plot in plots.values() for word in ("<blame>", "<praise>", "<bad>", "<good>")]
    assert all(plots["negative"].count(word) == plots["positive"].count(word) for word in emotive)


@pytest.mark.parametrize(
    "rows, most, message",
    [
        ([("good", 1)] * 4, None, "only label 1"),
        ([("good", 1), (" ", 0)], None, "row 1 of split train has no text"),
        ([("good", 1), ("bad", -1)], None, "label -1"),
        ([("good", 1), ("bad", 0)] * 4, 3, "max_train = 3"),
        ([], None, "only label none"),
    ],
)
def test_rows_that_teach_nothing_are_refused(rows, most, message):
    with pytest.raises(UserError, match=message):
        labelled.balanced(rows, most, 0, "train")


def test_subsampling_is_balanced_and_seeded():
    rows = [(f"text {number}", number % 2) for number in range(100)]
    taken = labelled.balanced(rows, 20, 0, "train")
    assert len(taken) == 20 and sum(label for _, label in taken) == 10 and len(set(taken)) == 20
    assert taken == labelled.balanced(rows, 20, 0, "train") != labelled.balanced(rows, 20, 1, "train")


def test_no_train_text_is_a_test_text():
    assert labelled.apart([("a", 0), ("b", 1), ("c", 0)], [("c", 0), ("d", 1)]) == [("a", 0), ("b", 1)]


def test_splits_that_disagree_are_refused():
    train = [("a", 0), ("b", 1)]
    with pytest.raises(UserError, match="label 2"):
        labelled.check(train, [("c", 2), ("d", 1)])
    with pytest.raises(UserError, match="without gaps"):
        labelled.check([("a", 1), ("b", 2)], [("c", 1)])


@pytest.mark.parametrize("keep, kept", [("head", [1, 2]), ("tail", [3, 4])])
def test_a_long_text_is_cut_inside_a_whole_template(keep, kept, tmp_path):
    def words(texts, **_):
        ids = {" so:": [8, 9], "long": [1, 2, 3, 4], "ok": [5]}
        return {"input_ids": ids[texts] if isinstance(texts, str) else [ids[text] for text in texts]}

    rows = labelled.tokenise(words, [("long", 1), ("ok", 0)], "{text} so:", 4, keep)
    assert [row.tolist() for row in rows] == [kept + [8, 9], [5, 8, 9]]
    begun = labelled.tokenise(words, [("long", 1), ("ok", 0)], "{text} so:", 5, keep, [7])
    assert [row.tolist() for row in begun] == [[7, *kept, 8, 9], [7, 5, 8, 9]]
    with pytest.raises(UserError, match="max_tokens = 2"):
        labelled.tokenise(words, [("ok", 0)], "{text} so:", 2, keep)
    labelled.write(tmp_path / "rows.parquet", rows, [1, 0])
    read, labels = labelled.read(tmp_path / "rows.parquet")
    assert [row.tolist() for row in read] == [kept + [8, 9], [5, 8, 9]] and labels.tolist() == [1, 0]


@pytest.mark.parametrize("label", ["positive", None])
def test_a_label_that_is_no_number_is_named(label, monkeypatch):
    table = {"text": ["fine", "bad"], "label": [1, label]}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: table)
    with pytest.raises(UserError, match="row 1 .* whole number in 'label'"):
        sources.labelled(LabelledDataset(kind="dataset", path="x", train="a", test="b"), "train", *FILES)


@pytest.mark.parametrize("examples", [1, 2, 7, 60, 200, 1000])
def test_an_interval_is_scipy_s_to_the_last_bit(examples):
    from scipy.stats import binomtest

    for right in range(0, examples + 1, max(1, examples // 60)):
        expected = binomtest(right, examples).proportion_ci(0.95, method="wilson")
        assert intervals.accuracy_interval(right, examples) == (expected.low, expected.high)
