"""Correlations that no split of the data changes, and a matching that finds what was planted."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import ffn
from stages.core.calibration.alignment import (
    REFERENCES,
    CorrelationStream,
    by_correlation,
    by_cost,
    cost,
    match,
    matched_correlation,
    null_correlation,
)
from stages.core.calibration.moments import SITE


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


# Several layers: against the first, or against the centre of all that lie there already


def shuffled(name):
    """The FFN of one layer under four orders of its neurons, the moments that go with each, and the orders."""
    model = tiny.model(name)
    whole = {key: value.double() for key, value in tiny.view(model).read(0).items()}
    width, moments = whole["w_in"].shape[0], tiny.calibration(model).moments(0)
    orders = {layer: tiny.shuffle(width, layer) if layer else torch.arange(width) for layer in range(4)}
    ffns = {layer: ffn.permute(whole, order) for layer, order in orders.items()}
    known = {layer: moments | {"hidden": moments["hidden"].permuted(order)} for layer, order in orders.items()}
    return ffns, known, orders


@pytest.mark.parametrize("reference", REFERENCES)
@tiny.every_family
def test_cost_undoes_any_shuffle_of_the_same_ffn(name, reference):
    ffns, known, orders = shuffled(name)
    found = by_cost(ffns.get, known.get, [0, 1, 2, 3], reference)
    assert all(np.array_equal(found[layer], orders[layer].argsort().numpy()) for layer in (1, 2, 3))


@tiny.every_family
def test_cost_is_the_error_of_one_ffn_in_place_of_another(name):
    """Its diagonal sums to the relative errors of the matrices, `out` by the power of each neuron alone."""
    model = tiny.model(name)
    one, other = ({k: v.double() for k, v in tiny.view(model).read(layer).items()} for layer in (0, 1))
    moments, wanted = tiny.calibration(model).moments(1), 0.0
    for role in tiny.family(model).matrices:
        second = moments[SITE[role]].second
        second = torch.diag(second.diagonal()) if role == "out" else second
        missing, weight = one[f"w_{role}"] - other[f"w_{role}"], other[f"w_{role}"]
        wanted += torch.trace(missing @ second @ missing.T) / torch.trace(weight @ second @ weight.T)
    torch.testing.assert_close(cost(one, other, moments).diagonal().sum(), wanted)


@given(seed=st.integers(0, 99))
def test_no_other_order_costs_less(seed):
    model = tiny.model("gpt2", seed)
    ffns = {i: {k: v.double() for k, v in tiny.view(model).read(i).items()} for i in (0, 1)}
    known = tiny.calibration(model).moments
    found, errors = by_cost(ffns.get, known, [0, 1], "first")[1], cost(ffns[0], ffns[1], known(1)).numpy()
    places = np.arange(len(found))
    others = [places, tiny.shuffle(len(found), seed).numpy()]
    assert all(errors[places, found].sum() <= errors[places, order].sum() + 1e-12 for order in others)


def test_the_centre_hears_every_layer_that_lies_there():
    """Layer 2 is close to layer 1 and far from layer 0: only the centre can match it."""
    generator = torch.Generator().manual_seed(0)
    shared, drift = (torch.randn(3000, 40, generator=generator) for _ in range(2))
    order = tiny.shuffle(40, 1).numpy()
    rows = [shared, shared + 2 * drift, drift[:, order]]
    between = lambda m, other: correlation(rows[m], rows[other])  # noqa: E731
    found = {reference: by_correlation(between, [0, 1, 2], reference) for reference in REFERENCES}
    right = {reference: (order[matched[2]] == np.arange(40)).mean() for reference, matched in found.items()}
    assert right["centre"] == 1.0 and right["first"] < 0.5
    assert np.array_equal(found["first"][1], found["centre"][1])
