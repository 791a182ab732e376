"""Intervals of paired perplexities: the known test where blocks are alike, right as often as they say, none of one."""

import made_up
import numpy as np
import pytest
from scipy import stats

from stages.core.process.errors import UserError
from stages.core.reporting import chapters, drawing, paired, pictures, tables
from stages.core.reporting.study import summary
from stages.core.tasks import losses

RANDOM = np.random.default_rng(0)


def test_with_blocks_of_one_it_is_the_paired_t_test():
    own, other = RANDOM.gamma(2.0, size=(2, 40))
    low, high = stats.ttest_rel(own, other).confidence_interval()
    found = paired.margin(own, other, np.arange(40))
    assert (own.mean() - other.mean() - found, own.mean() - other.mean() + found) == pytest.approx((low, high))


def test_with_blocks_of_one_size_it_is_the_t_test_of_their_means():
    own, other = RANDOM.normal(size=(2, 60))
    means = (own - other).reshape(12, 5).mean(1)
    low, high = stats.ttest_1samp(means, 0.0).confidence_interval()
    assert paired.margin(own, other, np.arange(60) // 5) == pytest.approx((high - low) / 2)


def test_what_moves_both_models_is_no_difference():
    own = RANDOM.normal(size=30)
    assert paired.margin(own + 0.25, own, np.arange(30) // 4) == pytest.approx(0.0, abs=1e-12)
    assert paired.margin(own, own, np.arange(30) // 30) is None


def test_it_holds_the_truth_as_often_as_it_says():
    """Differences that are alike within a block, of a true mean of 0.1, with a last block that is short."""
    blocks, held, drawn = np.arange(205) // 10, 0, 2000
    for _ in range(drawn):
        own = 0.1 + RANDOM.normal(size=21)[blocks] + 0.3 * RANDOM.normal(size=205)
        held += abs(own.mean() - 0.1) <= paired.margin(own, np.zeros(205), blocks)
    assert 0.93 <= held / drawn <= 0.97


def test_kept_losses_are_read_back_in_their_blocks(tmp_path):
    own, control = RANDOM.gamma(2.0, size=(2, 70)).astype(np.float32)
    losses.keep(tmp_path / "original.parquet", own, control, 32)
    losses.keep(tmp_path / "mix.parquet", control, own, 32)
    found = paired.read(tmp_path, ["original", "mix"])
    margin = paired.margin(own, control, np.repeat([0, 1, 2], [32, 32, 6]))
    assert paired.margins(found) == {"original": 0.0, "mix": margin}
    middle = (own.astype(float) - control).mean()
    assert paired.ratio(found, "mix", "original") == pytest.approx(np.exp([middle, middle - margin, middle + margin]))
    losses.keep(tmp_path / "other.parquet", own[:60], own[:60], 32)
    with pytest.raises(UserError, match="other.parquet and original.parquet are of different texts"):
        paired.read(tmp_path, ["original", "other"])
    for wrong, block in ((np.where(own > own.mean(), np.nan, own), 32), (own, -32), (own[:0], 32)):
        losses.keep(tmp_path / "wrong.parquet", wrong, wrong, block)
        with pytest.raises(UserError, match="wrong.parquet is no table of losses in blocks"):
            paired.read(tmp_path, ["wrong"])
    for name in ("original", "mix"):
        losses.keep(tmp_path / f"{name}.parquet", own, control, 70)
    found = paired.read(tmp_path, ["original", "mix"])
    assert paired.margins(found) == {} and paired.ratio(found, "mix", "original") is None and not paired.untold(found)


def test_two_blocks_of_a_broken_model_have_an_interval_without_end():
    found = paired.Losses(np.array([0, 1]), {"broken": np.array([600.0, 1.0]), "original": np.array([1.0, 1.0])})
    middle, low, high = paired.ratio(found, "broken", "original")
    assert low < 1 < middle < high < np.inf
    study = made_up.study(("original", "softshare"))
    study.margins["softshare"] = paired.margins(found)["broken"]
    assert "(0.0000–" in tables.headline(study).rows[1][tables.headline(study).header.index("to control (95%)")]
    for draw in ("perplexity_by_size", "perplexity_by_speed"):
        drawing.svg(getattr(pictures, draw)(study), draw)


def test_losses_of_another_model_are_refused():
    found = paired.Losses(np.arange(4), {"mix": np.log([2.0, 2.0, 8.0, 8.0]).astype(np.float32)})
    paired.refuse_others(found, {"mix": {"after": 4.0, "seeds": 1}})
    paired.refuse_others(found, {"mix": {"after": 4.2, "seeds": 3}})
    with pytest.raises(UserError, match="losses and the perplexity of mix are of different models"):
        paired.refuse_others(found, {"mix": {"after": 4.01, "seeds": 1}})


def test_neighbours_whose_order_is_open_are_named_and_no_others():
    first = RANDOM.gamma(2.0, size=64)
    noise = RANDOM.normal(size=64)
    noise -= noise.mean()
    of = {"far": first + 1.0, "same": first + 0.5, "near": first + 0.5 + 1e-3 + 0.1 * noise, "best": first}
    of["again"] = of["best"]
    found = paired.Losses(np.arange(64) // 2, of)
    assert paired.untold(found) == [("same", "near")]
    study = made_up.study(("original", "softshare"))
    assert not any("does not tell these" in str(part) for part in chapters.chapters(study)[0].parts)
    study.untold.append(("softshare", "original"))
    assert chapters.chapters(study)[0].parts[2].endswith("(by the first seed): `softshare` and `original`.")


def test_the_headline_shows_the_interval_and_none_of_a_short_split():
    study = made_up.study(("original", "softshare"))
    study.perplexity["original"].update(after=2.0)
    study.perplexity["softshare"].update(after=2.5)
    study.margins["softshare"] = np.log(1.1)
    column = tables.headline(study).header.index("to control (95%)")
    assert [row[column] for row in tables.headline(study).rows] == ["1.0000", "1.250 (1.136–1.375)"]
    assert study.to_control("softshare") == 1.25 and study.bounds("softshare") == pytest.approx((1.25 / 1.1, 1.375))
    study.margins.clear()
    assert [row[column] for row in tables.headline(study).rows] == ["1.0000", "1.250"]
    assert study.bounds("softshare") is None and "margin" not in summary(study)["softshare"]["perplexity"]
