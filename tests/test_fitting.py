"""The closed forms: each is the optimum it claims to be, on its own objective."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.calibration.moments import Moments, MomentStream, cholesky, from_tensors, to_tensors
from stages.core.shrinking import budgets, fitting, joint, lowrank, members, merging, ranks

NO_MOMENTS = None  # the plain fits do not look at them
seeds = st.integers(0, 999)


def residual(rows, columns, seed):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def skewed(width, seed):
    """Moments whose directions differ a hundredfold in size, so that weighting matters."""
    rows = residual(50 * width, width, seed) @ torch.diag(torch.logspace(-1, 1, width, dtype=torch.float64))
    return Moments(rows.mean(0), rows.T @ rows / len(rows))


def error(missing, moments):
    """E|M x|^2."""
    return torch.trace(missing @ moments.second @ missing.T).item()


# Moments


@pytest.mark.parametrize("seed", range(4))
def test_layers_that_read_different_directions_are_fitted_though_rounding_exceeds_the_ridge(seed):
    """As in an untrained model: their parallel sum is 0 but for float32's rounding, which is on both sides of it."""
    width, noise = 48, residual(48, 48, seed) * 3e-8
    found = []
    for first in (0, 3):
        directions = residual(width, 3, 10 + first)
        rounded = directions @ directions.T / 20 + noise + noise.T
        found.append(Moments(torch.zeros(width, dtype=torch.float64), rounded))
        noise = -noise
    weights = [residual(2 * width, width, seed + number) for number in range(2)]
    one, other = (m.ridged() for m in found)
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(joint.parallel(one, other, cholesky(one + other)))
    fitted = fitting.joint(weights, found, [2, 2])
    assert all(fitted.weight(number).isfinite().all() for number in range(2))
    assert left(fitted, weights, found) < 1e-4 * sum(error(w, m) for w, m in zip(weights, found))
    assert all(gain.isfinite().all() for gain in ranks.moving(weights, found))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_layers_that_read_nothing_gain_nothing(count):
    """Their moments are zeros but for the ridge, which is above zero."""
    weights = [residual(8, 6, seed) for seed in range(count)]
    nothing = [Moments(torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64))] * count
    assert not any(values.any() for values in ranks.moving(weights, nothing))
    assert not budgets.gains(weights[0] @ nothing[0].root, weights[1] @ nothing[0].root).any()


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=seeds)
def test_moments_are_those_of_all_rows_however_split(sizes, seed):
    rows, stream = residual(sum(sizes), 5, seed) + 3, MomentStream()
    for part in rows.split(sizes):
        stream.update(part)
    found = stream.moments()
    torch.testing.assert_close(found.mean, rows.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.second, rows.T @ rows / len(rows), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.centred().second, torch.cov(rows.T, correction=0), atol=1e-11, rtol=0)


def test_permuted_moments_are_the_moments_of_permuted_rows():
    rows, order, streams = residual(30, 6, 0), tiny.shuffle(6, 1), [MomentStream(), MomentStream()]
    streams[0].update(rows)
    streams[1].update(rows[:, order])
    found, expected = streams[0].moments().permuted(order), streams[1].moments()
    torch.testing.assert_close(found.second, expected.second)
    torch.testing.assert_close(found.mean, expected.mean)


def test_moments_survive_a_file():
    there = to_tensors({"input": skewed(4, 0), "hidden": skewed(6, 1)})
    back = from_tensors(there)
    assert back.keys() == {"input", "hidden"} and tiny.same(to_tensors(back), there)


def scaled_error(found, rows):
    """The largest error of second moments, relative to the sizes of the two coordinates of an entry."""
    exact = rows.double().T @ rows.double() / len(rows)
    size = exact.diagonal().sqrt()
    return ((found.second - exact).abs() / torch.outer(size, size)).max().item()


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("width", [7, 520])
def test_float32_rows_cost_a_millionth_at_most(width, offset):
    """Also where one coordinate is a thousand times the others, as massive activations are."""
    rows = (residual(3000, width, 0) + offset).float()
    rows[:, 0] *= 1e3
    stream = MomentStream()
    for part in rows.split(1300):
        stream.update(part)
    found = stream.moments()
    assert scaled_error(found, rows) < 1e-6
    assert torch.equal(found.second, found.second.T)
    # What is left of a large mean is as exact.
    exact, spread = torch.cov(rows.double().T, correction=0), rows.double().std(0, correction=0)
    assert ((found.centred().second - exact).abs() / torch.outer(spread, spread)).max() < 1e-6


def test_where_float32_products_matter_the_factor_is_still_one():
    """Fewer rows than coordinates leave directions without length, where rounding exceeds the ridge."""
    rows = (residual(40, 600, 0) @ torch.diag(torch.logspace(-3, 3, 600, dtype=torch.float64))).float()
    stream = MomentStream()
    stream.update(rows)
    found = stream.moments()
    assert scaled_error(found, rows) < 1e-6
    factor = found.factor(1e-12)
    assert torch.isfinite(factor).all()
    assert (factor @ factor.T - found.second).abs().max() < 1e-3 * found.second.diagonal().max()


def test_what_is_not_positive_definite_but_for_more_than_rounding_has_no_factor():
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(torch.diag(torch.tensor([1.0, -1.0])).double())


def test_directions_that_no_row_uses_do_not_break_the_factor():
    rows = residual(3, 8, 0)
    factor = Moments(rows.mean(0), rows.T @ rows / 3).factor()
    assert torch.isfinite(factor).all()
    assert torch.isfinite(Moments(torch.zeros(4).double(), torch.zeros(4, 4).double()).factor()).all()


# Deltas


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 999))
def test_svd_leaves_exactly_the_tail_of_the_spectrum(rows, columns, seed):
    target, errors = residual(rows, columns, seed), []
    tail = torch.linalg.svdvals(target).square().flip(0).cumsum(0).flip(0).tolist() + [0.0]
    for rank in range(1, min(rows, columns) + 1):
        a, b = lowrank.svd(target, rank, NO_MOMENTS)
        assert a.shape == (rows, rank) and b.shape == (rank, columns)
        assert torch.allclose(a.norm(dim=0), b.norm(dim=1))
        errors.append((target - a @ b).square().sum().item())
        assert errors[-1] == pytest.approx(tail[rank], rel=1e-9, abs=1e-18 + 1e-20 * tail[0])
    assert errors == sorted(errors, reverse=True)


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1e-1, 1.0]))
def test_no_other_product_is_better(seed, scale):
    target = residual(9, 7, seed)
    a, b = lowrank.svd(target, 3, NO_MOMENTS)
    other = (a + scale * residual(9, 3, seed + 1)) @ (b + scale * residual(3, 7, seed + 2))
    assert (target - a @ b).norm() < (target - other).norm()


def test_a_zero_delta_is_zero_and_can_learn():
    a, b = lowrank.zero(residual(9, 7, 0), 3, NO_MOMENTS)
    assert a.shape == (9, 3) and b.shape == (3, 7)
    assert not (a @ b).any() and b.all()


@given(seed=seeds, rank=st.integers(1, 6), shape=st.sampled_from([(12, 7), (7, 12)]))
def test_weighted_is_the_best_product_on_its_own_objective(seed, rank, shape):
    target, moments = residual(*shape, seed), skewed(shape[1], seed + 1)
    a, b = lowrank.weighted(target, rank, moments)
    best = error(target - a @ b, moments)
    # Eckart and Young in the coordinates where C is the identity.
    tail = torch.linalg.svdvals(target @ moments.factor(0.0))[rank:].square().sum().item()
    assert best == pytest.approx(tail, rel=1e-4)
    plain = lowrank.svd(target, rank, NO_MOMENTS)
    assert best <= error(target - plain[0] @ plain[1], moments) * (1 + 1e-9)
    assert torch.allclose(a.norm(dim=0), b.norm(dim=1))


def test_weighted_with_equal_directions_is_the_plain_fit():
    target, white = residual(9, 7, 0), Moments(torch.zeros(7).double(), torch.eye(7).double())
    (a, b), (c, d) = lowrank.weighted(target, 3, white), lowrank.svd(target, 3, NO_MOMENTS)
    torch.testing.assert_close(a @ b, c @ d, atol=1e-9, rtol=0)


# Bases


@pytest.mark.parametrize("base", merging.BASES)
def test_a_base_of_equal_weights_is_that_weight(base):
    weight = residual(5, 4, 0)
    found = merging.BASES[base]([weight] * 3, [skewed(4, seed) for seed in range(3)])
    torch.testing.assert_close(found, weight, atol=1e-12, rtol=0)


def test_bases_of_different_weights():
    weights = [residual(5, 4, seed) for seed in range(3)]
    assert torch.equal(merging.first(weights, NO_MOMENTS), weights[0])
    torch.testing.assert_close(merging.mean(weights, NO_MOMENTS), sum(weights) / 3)


@given(seed=seeds)
def test_regression_is_the_least_squares_optimum(seed):
    weights, moments = [residual(5, 4, seed + i) for i in range(3)], [skewed(4, seed + 9 + i) for i in range(3)]
    found = merging.regression(weights, moments)
    gradient = sum((found - weight) @ m.second for weight, m in zip(weights, moments))
    assert gradient.norm() < 1e-4 * sum(weight @ m.second for weight, m in zip(weights, moments)).norm()
    for other in (merging.mean(weights, NO_MOMENTS), weights[0], found + 1e-2 * residual(5, 4, seed + 5)):
        errors = [sum(error(w - weight, m) for weight, m in zip(weights, moments)) for w in (found, other)]
        assert errors[0] < errors[1]


# Base and deltas together


def several(count, seed):
    """Weights and moments of layers that have nothing in common."""
    return [residual(8, 6, seed + i) for i in range(count)], [skewed(6, seed + 9 + i) for i in range(count)]


def left(found, weights, moments):
    return sum(error(w - found.weight(i), m) for i, (w, m) in enumerate(zip(weights, moments)))


@given(seed=seeds, rank=st.integers(1, 3))
def test_the_joint_fit_never_climbs_and_beats_one_step(seed, rank):
    weights, moments = several(3, seed)
    errors = [left(fitting.joint(weights, moments, [rank] * 3, rounds), weights, moments) for rounds in range(1, 6)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in zip(errors, errors[1:]))
    once = fitting.fit(weights, moments, "regression", "weighted", [rank] * 3)
    assert errors[-1] <= left(once, weights, moments) * (1 + 1e-5)
    assert left(fitting.joint(weights, moments, [rank + 1] * 3), weights, moments) < errors[-1]


@given(seed=seeds, ranks=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_the_joint_fit_of_two_layers_is_the_optimum(seed, ranks):
    """Its error is what the two weights' difference has beyond rank r_1 + r_2 where C is the parallel sum of both."""
    (one, other), moments = several(2, seed)
    c, d = (m.second for m in moments)
    metric = torch.linalg.cholesky(torch.linalg.inv(torch.linalg.inv(c) + torch.linalg.inv(d)))
    tail = torch.linalg.svdvals((one - other) @ metric)[sum(ranks) :].square().sum().item()
    found = left(fitting.joint([one, other], moments, list(ranks)), [one, other], moments)
    assert found == pytest.approx(tail, rel=1e-4, abs=1e-4)
    apart = left(fitting.fit([one, other], moments, "regression", "weighted", list(ranks)), [one, other], moments)
    assert found <= apart * (1 + 1e-5) + 1e-4


@given(seed=seeds, count=st.integers(3, 5))
def test_the_base_itself_spares_one_delta(seed, count):
    """All but one layer with deltas of full rank: base and deltas are exact, where a fixed mean leaves an error."""
    weights, moments = several(count, seed)
    ranks = [0] + [6] * (count - 1)
    whole = sum(error(w, m) for w, m in zip(weights, moments))
    assert left(fitting.joint(weights, moments, ranks, 200), weights, moments) < 1e-4 * whole
    assert left(fitting.fit(weights, moments, "regression", "weighted", ranks), weights, moments) > 1e-2 * whole


def descended_plainly(weights, moments, ranks_of, rounds):
    """The steps of the joint fit as its docstring says them, by inverses and singular vectors."""
    grams = [m.ridged() for m in moments]
    whole = sum(grams)
    deltas = [torch.zeros_like(weight) for weight in weights]

    def best(residual, metric, rank):
        u = torch.linalg.svd(residual @ torch.linalg.cholesky(metric)).U[:, :rank]
        return u @ u.T @ residual

    for _ in range(rounds):
        for layer, rank in enumerate(ranks_of):
            rest = whole - grams[layer]
            others = sum((w - d) @ c for i, (w, d, c) in enumerate(zip(weights, deltas, grams)) if i != layer)
            metric = grams[layer] @ whole.inverse() @ rest
            deltas[layer] = best(weights[layer] - others @ rest.inverse(), (metric + metric.T) / 2, rank)
    base = sum((w - d) @ c for w, d, c in zip(weights, deltas, grams)) @ whole.inverse()
    return [base + best(w - base, c, rank) for w, c, rank in zip(weights, grams, ranks_of)]


@pytest.mark.parametrize("sizes", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("loud", [None, 0, 2])
def test_thin_products_change_no_step_of_the_joint_fit(sizes, loud):
    """Also where one layer's inputs are a hundred times those of the others: C_l larger than the others' sum."""
    weights = [residual(*sizes, i) for i in range(3)]
    moments = [skewed(sizes[1], i) for i in range(3)]
    if loud is not None:
        moments[loud] = Moments(100 * moments[loud].mean, 1e4 * moments[loud].second)
    problem = joint.Joint(weights, moments)
    for ranks_of in ([2, 1, 3], [1, 0, 2]):  # one problem, several ranks
        found = fitting.Fit(*problem.fit(ranks_of, 4))
        for layer, expected in enumerate(descended_plainly(weights, moments, ranks_of, 4)):
            torch.testing.assert_close(found.weight(layer), expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_layer_that_reads_next_to_nothing_does_not_break_the_joint_fit(count, rows):
    weights, moments = several(count, 0)
    read = residual(max(rows, 1), 6, 1) * rows
    moments[0] = Moments(read.mean(0), read.T @ read)
    found = fitting.joint(weights, moments, [2] * count)
    assert all(torch.isfinite(found.weight(layer)).all() for layer in range(count))


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_without_biases_their_correction_changes_nothing(name):
    specs = [tiny.share(4, base="regression", delta="joint", bias_correction=on) for on in (True, False)]
    model = tiny.model(name)
    changed = [tiny.operate(model, tiny.GROUPS, tiny.calibration(model), spec)[0] for spec in specs]
    assert tiny.same(*map(tiny.state, changed))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_corrected_bias_takes_up_the_mean_error(name):
    model = tiny.model(name)
    known, group = tiny.calibration(model), [0, 1, 2]
    spec = tiny.share(4, base="regression", delta="joint", bias_correction=True)
    shared, _ = tiny.operate(model, [group], known, spec)
    every = members.aligned(tiny.view(model), group, known, spec)
    for layer, member in zip(group, every):
        for role, linear in tiny.view(shared).linears(layer).items():
            x = member.moments[members.SITE[role]].mean
            weight = linear.base.weight.double()
            weight = (weight.T if tiny.family(model).transposed else weight) + linear.delta().double()
            expected = member.ffn[f"w_{role}"] @ x + member.ffn[f"b_{role}"]
            torch.testing.assert_close(weight @ x + linear.base.bias.double(), expected, atol=1e-5, rtol=0)


# What ranks are worth where the base moves


@settings(max_examples=15)
@given(seed=seeds, ranks_of=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_gains_of_a_pair_are_what_the_best_of_many_fits_leaves(seed, ranks_of):
    """No fit from any start leaves less than the gains that are not taken, and the joint fit leaves no more."""
    weights, moments = several(2, seed)
    whole = sum(error(w, m) for w, m in zip(weights, moments)) / 2
    taken = torch.cat(ranks.moving(weights, moments)).sort(descending=True).values * whole
    tail = taken[sum(ranks_of) :].sum().item()
    found = [left(descended(weights, moments, ranks_of, start), weights, moments) for start in range(3)]
    assert min(found) >= tail - 1e-5 * whole
    joint = left(fitting.joint(weights, moments, list(ranks_of)), weights, moments)
    assert tail == pytest.approx(joint, rel=1e-4, abs=1e-5 * whole)


def descended(weights, moments, ranks_of, seed, rounds=30):
    """Base and deltas by alternating least squares from random deltas: an independent way to the optimum."""
    rest = [
        w - residual(8, r, seed + i) @ residual(r, 6, seed + 5 + i) for i, (w, r) in enumerate(zip(weights, ranks_of))
    ]
    for _ in range(rounds):
        base = merging.regression(rest, moments)
        deltas = [lowrank.weighted(w - base, r, m) if r else None for w, r, m in zip(weights, ranks_of, moments)]
        rest = [w - (0 if delta is None else delta[0] @ delta[1]) for w, delta in zip(weights, deltas)]
    return fitting.Fit(base, deltas)


@settings(max_examples=15)
@given(seed=seeds, count=st.integers(3, 4))
def test_gains_of_more_layers_promise_no_more_than_a_fit_takes_away(seed, count):
    weights, moments = several(count, seed)
    whole = sum(error(w, m) for w, m in zip(weights, moments)) / count
    taken = ranks.moving(weights, moments)
    assert all((values[1:] <= values[:-1] * 2).all() and len(values) <= 6 for values in taken)
    least = left(fitting.joint(weights, moments, [0] * count), weights, moments)
    # Every step of the path at once: the ranks that are worth a price, for several prices.
    for price in (0.3, 0.1, 0.01):
        chosen = [int((values > price).sum()) for values in taken]
        promised = sum(values[:rank].sum().item() for values, rank in zip(taken, chosen)) * whole
        found = min(left(fitting.joint(weights, moments, chosen, rounds), weights, moments) for rounds in (5, 60))
        assert found <= (least - promised) + 0.02 * least
