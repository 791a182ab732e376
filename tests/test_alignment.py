"""Correlations that no split of the data changes, and a matching that finds what was planted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.alignment import CorrelationStream, match, matched_correlation, null_correlation


def correlation(x, y, sizes=None):
    """The correlation matrix of two arrays of rows, fed in batches of the given sizes."""
    stream = CorrelationStream()
    for part, other in zip(torch.as_tensor(x).split(sizes or len(x)), torch.as_tensor(y).split(sizes or len(y))):
        stream.update(part, other)
    return stream.matrix().numpy()


def reference(x, y):
    return np.corrcoef(np.asarray(x, np.float64).T, np.asarray(y, np.float64).T)[: x.shape[1], x.shape[1] :]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    offset=st.sampled_from([0, 9]),
    seed=st.integers(0, 999),
)
def test_no_split_into_batches_matters(sizes, offset, seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(offset, 1, (sum(sizes), 4)), random.normal(offset, 3, (sum(sizes), 5))
    y[:, 0] += 2 * x[:, 1]
    found = correlation(x, y, sizes)
    assert np.abs(found - reference(x, y)).max() <= 1e-12
    assert np.abs(found).max() <= 1


def test_with_itself_it_is_symmetric_with_unit_diagonal():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    found = correlation(x, x, 37)
    assert np.abs(found - found.T).max() <= 1e-12 and np.abs(found.diagonal() - 1).max() <= 1e-12


def test_a_large_offset_costs_no_precision():
    random = np.random.default_rng(0)
    x = (1e4 + random.normal(size=(4000, 6))).astype(np.float32)
    y = (1e4 + random.normal(size=(4000, 6))).astype(np.float32)
    expected = reference(x, y)
    assert np.abs(correlation(x, y, 128) - expected).max() <= 1e-9
    # The control: E[xy] - E[x]E[y] in float32 knows nothing any more.
    naive = (x.T @ y) / np.float32(len(x)) - np.outer(x.mean(0), y.mean(0))
    assert np.abs(naive - expected).max() > 1


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_recovered_whole(seed):
    generator = torch.Generator().manual_seed(seed)
    x, planted = torch.randn(4000, 256, generator=generator), torch.randperm(256, generator=generator)
    y = torch.empty_like(x)
    y[:, planted] = x + torch.randn(x.shape, generator=generator)
    found = correlation(x, y, 500)
    assert np.array_equal(match(found), planted.numpy())
    assert matched_correlation(found, match(found)) == pytest.approx(0.5**0.5, abs=0.01)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    value=st.floats(-1e6, 1e6, width=32),
    dead=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_dead_neurons_correlate_with_nothing_and_pair_up(sizes, value, dead, seed):
    random = np.random.default_rng(seed)
    x, y = (random.normal(size=(sum(sizes), 6)).astype(np.float32) for _ in range(2))
    rows, columns = (random.permutation(6)[:dead] for _ in range(2))
    x[:, rows] = y[:, columns] = value
    found = correlation(x, y, sizes)
    assert np.isfinite(found).all()
    assert not found[rows].any() and not found[:, columns].any()
    permutation = match(found)
    assert sorted(permutation) == list(range(6))
    assert set(permutation[rows]) == set(columns)


def test_dead_neurons_pair_up_even_where_the_live_ones_disagree():
    assert match(np.array([[-0.5, 0.0], [0.0, 0.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("rows, expected", [(128, 0.254), (4000, 0.046)])
def test_chance_alone_matches_this_well(rows, expected):
    assert null_correlation(rows, 512) == pytest.approx(expected, abs=0.005)
    assert null_correlation(rows, 64) == null_correlation(rows, 64)
