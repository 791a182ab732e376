"""What is compared is the same: our alignment of a window and the peer's agree, and a figure says its ratio."""

import numpy as np
import pytest
import torch

from tests.benchmarks import __main__ as bench
from tests.benchmarks import figures, peer, shapes, work
from tests.benchmarks.measuring import Figure


def test_our_alignment_of_a_window_is_the_peer_s():
    seen, own = shapes.activations(3, 64, 400, 100), work.weights(3, 16, 64)
    (orders, merged), (others, averaged) = work.align_window(seen, own), peer.merge_window(seen, own)
    assert all(np.array_equal(order, other) for order, other in zip(orders, others, strict=True))
    for name, value in averaged.items():
        torch.testing.assert_close(merged[name], value, atol=1e-5, rtol=0)


def test_correlations_are_numpy_s():
    seen = [torch.cat(list(rows)).numpy() for rows in zip(*shapes.activations(2, 32, 400, 100))]
    known = [work.standardised(torch.from_numpy(rows))[0] for rows in seen]
    assert np.abs(work.correlations(*known).numpy() - peer.correlations(seen)[:32, 32:]).max() < 1e-5


def test_a_line_says_how_many_times_as_fast_or_as_long():
    fast, long = (
        Figure("a", [1.0, 2.0, 9.0], [6.0], "peer", "tiny", ">= 2"),
        Figure("b", [3.0], [2.0], "limit", "", "", False),
    )
    assert fast.line() == "a: 3.00, wanted >= 2 (ours 2 s [1 to 9], peer 6 s; tiny)"
    assert long.ratio == 1.5 and long.record()["ratio"] == 1.5


def test_every_group_of_figures_has_a_name_that_only_can_choose():
    assert all(name.isidentifier() and measure.__doc__ for name, measure in figures.FIGURES.items())


def test_only_chooses_groups_by_a_part_of_their_name():
    assert bench.chosen("") == list(figures.FIGURES) and bench.chosen("align") == ["align_window", "align_all"]


def test_a_group_that_is_not_there_is_refused_with_those_that_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.entry(["--only", "nosuch"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("ONLY=nosuch: ") and all(name in said.err for name in figures.FIGURES)
