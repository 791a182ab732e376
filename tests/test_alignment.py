"""Correlations as exact as their rows, and a matching that finds what was planted."""

from functools import partial

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import ffn
from stages.core.calibration.alignment import (
    REFERENCES,
    Costs,
    by_correlation,
    by_cost,
    match,
    matched_correlation,
    null_correlation,
)
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import SITE, Moments


def correlation(x, y):
    """The correlation matrix of two arrays of rows, in their own dtype."""
    return correlations(*(standardised(torch.as_tensor(rows))[0] for rows in (x, y))).numpy()


def reference(x, y):
    return np.corrcoef(np.asarray(x, np.float64).T, np.asarray(y, np.float64).T)[: x.shape[1], x.shape[1] :]


@given(rows=st.integers(2, 72), offset=st.sampled_from([0, 9]), seed=st.integers(0, 999))
def test_they_are_those_of_numpy(rows, offset, seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(offset, 1, (rows, 4)), random.normal(offset, 3, (rows, 5))
    y[:, 0] += 2 * x[:, 1]
    found = correlation(x, y)
    assert np.abs(found - reference(x, y)).max() <= 1e-12
    assert np.abs(found).max() <= 1


def test_with_itself_it_is_symmetric_with_unit_diagonal():
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    for rows, most in ((x.double(), 1e-12), (x, 1e-6)):
        found = correlation(rows, rows)
        assert np.abs(found - found.T).max() <= most and np.abs(found.diagonal() - 1).max() <= most


def test_a_large_offset_costs_no_precision():
    random = np.random.default_rng(0)
    x = (1e4 + random.normal(size=(4000, 6))).astype(np.float32)
    y = (1e4 + random.normal(size=(4000, 6))).astype(np.float32)
    expected = reference(x, y)
    assert np.abs(correlation(x.astype(np.float64), y.astype(np.float64)) - expected).max() <= 1e-9
    # Statistics are float64 where rows are float32; the product alone is not.
    assert np.abs(correlation(x, y) - expected).max() <= 1e-6
    # The control: E[xy] - E[x]E[y] in float32 knows nothing any more.
    naive = (x.T @ y) / np.float32(len(x)) - np.outer(x.mean(0), y.mean(0))
    assert np.abs(naive - expected).max() > 1


@pytest.mark.parametrize("width", [512, 513, 1100])
def test_columns_are_standardised_whatever_tile_they_lie_in(width):
    rows = 3 + torch.randn(40, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, dead = standardised(rows)
    centred = rows - rows.mean(0)
    torch.testing.assert_close(found, centred / centred.norm(dim=0), atol=1e-12, rtol=0)
    assert dead.shape == (width,) and not dead.any()


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_recovered_whole(seed):
    generator = torch.Generator().manual_seed(seed)
    x, planted = torch.randn(4000, 256, generator=generator), torch.randperm(256, generator=generator)
    y = torch.empty_like(x)
    y[:, planted] = x + torch.randn(x.shape, generator=generator)
    found = correlation(x, y)
    assert np.array_equal(match(found), planted.numpy())
    assert matched_correlation(found, match(found)) == pytest.approx(0.5**0.5, abs=0.01)


@given(
    rows=st.integers(2, 54),
    value=st.floats(-1e6, 1e6, width=32),
    dead=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_dead_neurons_correlate_with_nothing_and_pair_up(rows, value, dead, seed):
    random = np.random.default_rng(seed)
    x, y = (random.normal(size=(rows, 6)).astype(np.float32) for _ in range(2))
    rows, columns = (random.permutation(6)[:dead] for _ in range(2))
    x[:, rows] = y[:, columns] = value
    assert set(standardised(torch.as_tensor(x))[1].nonzero().flatten().tolist()) == set(rows)
    found = correlation(x, y)
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
    found = by_cost(ffns.get, known.get, [[0, 1, 2, 3]], [reference])[reference][0]
    assert all(np.array_equal(found[layer], orders[layer].argsort().numpy()) for layer in (1, 2, 3))


# Signs: in a gated FFN a neuron whose rows of `in` and column of `out` are negated computes the same


def signed(width, seed):
    """A random permutation, every second of whose neurons has the other sign."""
    order = tiny.shuffle(width, seed)
    return torch.where(tiny.shuffle(width, seed + 50) % 2 == 0, order, ~order)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma3_text"])
def test_a_signed_permutation_leaves_the_logits(name):
    model, changed, broken = (tiny.model(name).double() for _ in range(3))
    for layer in range(tiny.LAYERS):
        own = tiny.view(model).read(layer)
        order = signed(len(own["w_in"]), layer)
        moved = ffn.permute(own, order)
        tiny.view(changed).write(layer, moved)
        tiny.view(broken).write(layer, moved | {"w_out": own["w_out"][:, ffn.unsigned(order)[0]]})
    assert tiny.gap(model, changed) < 1e-10 and tiny.gap(model, broken) > 1e-2


def test_an_ffn_without_a_gate_has_no_signs():
    own = tiny.view(tiny.model("gpt2")).read(0)
    with pytest.raises(ValueError, match="without a gate"):
        ffn.permute(own, signed(len(own["w_in"]), 0))


def test_moments_of_a_signed_permutation_are_those_of_the_moved_activations():
    rows = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    order = torch.tensor([3, ~0, 5, ~1, ~2, 4])
    moved = torch.stack([rows[:, 3], -rows[:, 0], rows[:, 5], -rows[:, 1], -rows[:, 2], rows[:, 4]], 1)
    found, expected = (Moments(x.mean(0), x.T @ x / 50) for x in (rows, moved))
    torch.testing.assert_close(found.permuted(order).mean, expected.mean)
    torch.testing.assert_close(found.permuted(order).second, expected.second)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_cost_with_signs_undoes_any_signed_shuffle(name, reference):
    whole = tiny.view(tiny.model(name)).read_double(0)
    width, moments = len(whole["w_in"]), tiny.calibration(tiny.model(name)).moments(0)
    orders = {layer: signed(width, layer) if layer else torch.arange(width) for layer in range(4)}
    ffns = {layer: ffn.permute(whole, order) for layer, order in orders.items()}
    known = {layer: moments | {"hidden": moments["hidden"].permuted(order)} for layer, order in orders.items()}
    found = by_cost(ffns.get, known.get, [[0, 1, 2, 3]], [reference], signs=True)[reference][0]
    assert any((order < 0).any() for order in found.values())
    for layer, order in found.items():
        undone = ffn.permute(ffns[layer], torch.from_numpy(order))
        assert all(torch.equal(undone[key], whole[key]) for key in whole)


@given(seed=st.integers(0, 99))
def test_no_other_signed_order_costs_less(seed):
    """The chosen order and signs cost what `cost` says of the moved FFN, and no more than the best order without."""
    view = tiny.view(tiny.model("llama", seed))
    ffns, known = [view.read_double(layer) for layer in (0, 1)], tiny.calibration(view.model).moments(1)

    def error(order):
        moved = known | {"hidden": known["hidden"].permuted(order)}
        return Costs(ffn.permute(ffns[1], order), moved).of(ffns[0]).diagonal().sum().item()

    plain, better = (
        torch.from_numpy(by_cost(ffns.__getitem__, lambda _: known, [[0, 1]], ["first"], signs=on)["first"][0][1])
        for on in (False, True)
    )
    best = Costs(ffns[1], known).of(ffns[0], signs=True)
    assert error(better) == pytest.approx(best[torch.arange(len(better)), ffn.unsigned(better)[0]].sum().item())
    assert error(better) <= error(plain) and error(better) <= error(signed(len(plain), seed))
    flipped = better.clone()
    flipped[0] = ~flipped[0]
    assert error(better) <= error(flipped)


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
    torch.testing.assert_close(Costs(other, moments).of(one).diagonal().sum(), wanted)


@given(seed=st.integers(0, 99))
def test_no_other_order_costs_less(seed):
    model = tiny.model("gpt2", seed)
    ffns = {i: {k: v.double() for k, v in tiny.view(model).read(i).items()} for i in (0, 1)}
    known = tiny.calibration(model).moments
    found, errors = (
        by_cost(ffns.get, known, [[0, 1]], ["first"])["first"][0][1],
        Costs(ffns[1], known(1)).of(ffns[0]).numpy(),
    )
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
    found = {reference: orders[0] for reference, orders in by_correlation(between, [[0, 1, 2]], REFERENCES).items()}
    right = {reference: (order[matched[2]] == np.arange(40)).mean() for reference, matched in found.items()}
    assert right["centre"] == 1.0 and right["first"] < 0.5
    assert np.array_equal(found["first"][1], found["centre"][1])


# All windows at once


def several():
    """What `by_correlation` and `by_cost` read of five layers that have nothing in common."""
    model = tiny.model("llama")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(60, 48, generator=generator) for _ in range(tiny.LAYERS)]
    between = lambda m, other: correlation(rows[m], rows[other])  # noqa: E731
    return between, tiny.view(model).read_double, tiny.calibration(model).moments


WINDOWS = [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4], [3, 4]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("way", ["correlation", "cost"])
def test_windows_together_are_matched_as_each_alone(way, threads):
    between, ffn_of, moments_of = several()
    solve = partial(by_correlation, between) if way == "correlation" else partial(by_cost, ffn_of, moments_of)
    alone = [solve([window], [reference]) for window in WINDOWS for reference in REFERENCES]
    torch.set_num_threads(threads)
    try:
        together = solve(WINDOWS, REFERENCES)
    finally:
        torch.set_num_threads(1)
    for orders in alone:
        for reference, windows in orders.items():
            for first, layers in windows.items():
                assert layers.keys() == together[reference][first].keys() == {first + 1 + i for i in range(len(layers))}
                assert all(np.array_equal(order, together[reference][first][layer]) for layer, order in layers.items())


@pytest.mark.parametrize("way", ["correlation", "cost"])
def test_what_is_matched_is_read_once(way):
    between, ffn_of, moments_of = several()
    read = []

    def counting(function):
        return lambda *what: read.append((function, *what)) or function(*what)

    if way == "correlation":
        told = {}
        by_correlation(counting(between), WINDOWS, REFERENCES, note=lambda *of: told.update({of[:2]: of[2:]}))
        assert told.keys() == {(window[0], layer) for window in WINDOWS for layer in window[1:]}
        assert all(np.array_equal(match(matrix), order) for matrix, order in told.values())
    else:
        by_cost(counting(ffn_of), counting(moments_of), WINDOWS, REFERENCES)
    assert len(read) == len(set(read))


def test_an_error_in_a_thread_is_an_error():
    between = lambda m, other: np.full((4, 4), np.nan)  # noqa: E731
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError):
            by_correlation(between, WINDOWS, REFERENCES)
    finally:
        torch.set_num_threads(1)
