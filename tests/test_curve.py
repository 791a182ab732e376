"""Every method at a given size: it stores at most that, and a size that it cannot reach is left out."""

from functools import cache

import pytest
import tiny

from stages.commands import curve as command
from stages.core.architecture import targets
from stages.core.process.errors import UserError
from stages.core.shrinking import curve
from stages.core.shrinking.probes import Judge


def test_every_method_stores_at_most_the_size():
    model = tiny.model("llama")
    view, known, asked = tiny.view(model), tiny.calibration(model), []

    def score(changed):
        asked.append(changed)
        return 2.0 + len(asked) / 1000

    judge = Judge(score, lambda view: None, lambda view, reference: 0.01)
    plans = curve.plans([0.9], view.shape)
    assert [name for name, _ in plans] == [name for name in curve.METHODS if curve.fits(name, 0.9, view.shape)]
    assert {"softshare", "mix", "pruned", "dropped", "dropped_searched", "basis_2"} <= {name for name, _ in plans}
    probed = cache(lambda: curve.probe(view, known, judge))
    for name, share in plans:
        changed, *_ = curve.make(name, share, view, known, judge, probed)
        assert tiny.count(changed.model)["parameters"] <= targets.target(view.shape, share), name


def test_a_size_out_of_reach_is_left_out():
    shape = tiny.view(tiny.model("gpt2")).shape
    assert not curve.fits("svd", 0.01, shape) and curve.fits("svd", 0.9, shape)


@pytest.mark.parametrize("said", ["", "0.5,a", "1.0", "0", "80%"])
def test_sizes_are_shares(said):
    with pytest.raises(UserError, match="SIZES = .*: shares of the original's parameters are needed"):
        command._shares("SIZES", said)
    assert command._shares("SIZES", "0.8,0.9,0.8") == [0.9, 0.8]


@pytest.mark.parametrize("said", ["", "a", "0,0", "-1", "0.5"])
def test_seeds_are_different_whole_numbers(said):
    with pytest.raises(UserError, match="SEEDS = .*: different whole numbers are needed"):
        command._seeds(said)
    assert command._seeds("2,0") == [2, 0]


def test_a_size_to_train_is_one_of_the_sizes(tmp_path):
    with pytest.raises(UserError, match=r"TRAIN = 0.7: 0.7 is none of SIZES = 0.9,0.8"):
        command.main("0.9,0.8", "0.7", "0", tmp_path)


def test_labels_keep_their_order_and_lie_apart():
    found = command._apart({"b": 1.0, "a": 1.01, "c": 5.0}, 1.2)
    assert found == {"b": 1.0, "a": 1.2, "c": 5.0}
