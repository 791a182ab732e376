"""The ablation names every arm once, and each is what its name says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import tiny_vision

from stages.commands import ablate
from stages.commands.ablate import main, window_of
from stages.core.process.errors import UserError
from stages.core.shrinking import ablation


@tiny.every_family
def test_every_arm_is_scored_once_and_only_deltas_have_rank(name):
    model, seen = tiny.model(name), []

    def score(shared):
        seen.append(sum(p.numel() for p in shared.model.parameters()))
        return float(len(seen))

    rows = list(ablation.untrained(tiny.view(model), [1, 2], tiny.calibration(model), ["pre_activation"], 2, score))
    arms = [tuple(row[key] for key in ("alignment", "reference", "base", "delta", "repair")) for row in rows]
    assert len(arms) == len(set(arms)) == 5 * len(ablation.FORMS)
    assert [row["perplexity"] for row in rows] == list(range(1, len(rows) + 1))
    sizes = {arm[3] == "none": set() for arm in arms}
    for arm, size in zip(arms, seen):
        sizes[arm[3] == "none"].add(size)
    assert all(len(found) == 1 for found in sizes.values()) and max(sizes[True]) < min(sizes[False])


def test_every_start_meets_every_recovery():
    model, asked = tiny.model("gpt2"), []

    def train(shared, sharing, wanted):
        asked.append((sharing.rank, wanted.train, wanted.rate))
        return 1.0

    rows = list(ablation.recovered(tiny.view(model), [1, 2], tiny.calibration(model), ["pre_activation"], 2, train))
    assert len(rows) == len(asked) == len(ablation.STARTS) * len(ablation.RECOVERIES) * len(ablation.RATES)
    assert {row["delta"] for row in rows} == {"zero", "joint"}
    ranks, parts, rates = map(set, zip(*asked))
    assert ranks == {2} and parts == {"deltas", "window", "all"} and rates == {1.0, 0.1}
    assert {row["alignment"] for row in rows} == {"pre_activation", "cost"}


def test_a_site_whose_correlations_do_not_exist_is_not_asked_for():
    model = tiny.model("gpt2")
    known = tiny.calibration(model)
    asked = []
    one = replace(known, permutation=lambda way, *more: asked.append(way) or known.permutation(way, *more))
    list(ablation.recovered(tiny.view(model), [1, 2], one, ["post_activation"], 2, lambda *_: 1.0))
    assert set(asked) == {"post_activation", "cost"}


@pytest.mark.parametrize("window", ["", "4", "3-3", "-3", "b-4", "5-2"])
def test_a_window_that_is_none_is_refused_before_any_model_is_opened(window, tmp_path):
    with pytest.raises(UserError, match="^WINDOW .*: the first and the last of two layers or more are needed, as 2-5"):
        main(window, "8", "yes", tmp_path)
    assert window_of("2-5") == (2, 5)


@pytest.mark.parametrize("rank", ["", "x", "0", "-1", "1.5"])
def test_a_rank_that_is_none_is_refused_before_any_model_is_opened(rank, tmp_path):
    with pytest.raises(UserError, match="RANK = .*: a whole number from 1 is needed"):
        main("2-5", rank, "yes", tmp_path)


@pytest.mark.parametrize(
    "window, rank, message",
    [
        ("3-12", "2", f"WINDOW = 3-12: this model has layers 0 to {tiny.LAYERS - 1}"),
        ("1-2", "999", "RANK = 999: a whole number from 1 to [0-9]+ is needed"),
        ("0-3", "2", "WINDOW = 0-3: correlate.reach = 3 layers were aligned with each other at most"),
    ],
)
def test_what_the_model_is_too_small_for_is_refused(window, rank, message, monkeypatch, tmp_path):
    study = SimpleNamespace(view=tiny.view(tiny.model("gpt2")), section=lambda name: SimpleNamespace(sites=[], reach=3))
    monkeypatch.setattr(ablate.Opened, "here", lambda: study)
    with pytest.raises(UserError, match=message):
        main(window, rank, "no", tmp_path)


def test_a_window_lies_within_a_stage(monkeypatch, tmp_path):
    study = SimpleNamespace(view=tiny_vision.view("swin"), section=lambda name: SimpleNamespace(sites=[], reach=5))
    monkeypatch.setattr(ablate.Opened, "here", lambda: study)
    with pytest.raises(UserError, match="WINDOW = 1-3: layers of other sizes begin at 2"):
        main("1-3", "2", "no", tmp_path)


def test_a_word_that_is_neither_yes_nor_no_is_refused(tmp_path):
    with pytest.raises(UserError, match="RECOVER = maybe: yes or no is needed"):
        main("1-2", "8", "maybe", tmp_path)
