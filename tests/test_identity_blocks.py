"""Blocks that do nothing, as block expansion makes them: what is zero costs nothing, every closed form is finite."""

import itertools
from functools import cache

import numpy as np
import pytest
import tiny
import torch

from stages.core.architecture.depth import influence
from stages.core.calibration import activations, alignment
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import Moments, MomentStream
from stages.core.calibration.statistics import Calibration
from stages.core.settings.surgeries import Drop, LowRank
from stages.core.settings.windows import Best, Budget
from stages.core.shrinking import budgets, fitting, ranks, repair, window_search
from stages.core.training import recovery

SITES = {"input": "input", "hidden": "post_activation"}
TEXT = [tiny.ids(8, seed=seed) for seed in range(4)]
# What is zero, of the FFNs of layers 1 and 3 of five.
FAULTS = {"w_out": ["w_out", "b_out"], "w_in": ["w_in"], "gate": ["w_gate", "b_gate"], "all": None}
every_fault = pytest.mark.parametrize("fault", FAULTS)


@cache
def expanded(name: str, fault: str):
    """A model with blocks of zeros, and its calibration, measured as the stages measure it."""
    built = tiny.model(name)
    for layer in (1, 3):
        own = tiny.view(built).read(layer)
        gone = FAULTS[fault] or list(own)
        tiny.view(built).write(layer, {k: torch.zeros_like(v) if k in gone else v for k, v in own.items()})
    streams = [{site: MomentStream() for site in SITES} for _ in range(tiny.LAYERS)]
    rows = [[] for _ in range(tiny.LAYERS)]
    for seen in activations.stream(tiny.view(built), ("input", "post_activation"), TEXT):
        for layer, found in enumerate(streams):
            for site, stream in found.items():
                stream.update(seen[SITES[site]][layer])
        for layer, parts in enumerate(rows):
            parts.append(seen["post_activation"][layer])
    known = [standardised(torch.cat(parts))[0] for parts in rows]
    moments = [{site: stream.moments() for site, stream in found.items()} for found in streams]

    def permutation(how, reference, first, other):
        layers = list(range(first, other + 1))
        if how == "cost":
            found = alignment.by_cost(tiny.view(built).read_double, moments.__getitem__, [layers], [reference])
        else:
            between = lambda a, b: correlations(known[a], known[b]).numpy()  # noqa: E731
            found = alignment.by_correlation(between, [layers], [reference])
        return torch.from_numpy(found[reference][first][other])

    return built, Calibration(permutation, moments.__getitem__, lambda: TEXT)


def sound(model) -> bool:
    """Whether all parameters and logits are finite."""
    return all(p.isfinite().all() for p in model.parameters()) and bool(tiny.logits(model).isfinite().all())


@every_fault
@tiny.every_family
@pytest.mark.parametrize("how", ["cost", "post_activation"])
def test_neurons_of_zero_matrices_are_matched_all_the_same(how, name, fault):
    _, calibration = expanded(name, fault)
    for reference in alignment.REFERENCES:
        for other in range(1, tiny.LAYERS):
            found = calibration.permutation(how, reference, 0, other).numpy()
            assert np.array_equal(np.sort(found), np.arange(len(found)))


def test_what_is_zero_costs_nothing_and_the_rest_decides():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    own = {"w_in": draw(12, 6), "w_out": torch.zeros(6, 12, dtype=torch.float64)}
    moments = {"input": tiny.moments(6, 0), "hidden": tiny.moments(12, 1)}
    order = tiny.shuffle(12, 3)
    reference = {"w_in": own["w_in"][order], "w_out": draw(6, 12)}
    found = alignment.by_cost([reference, own].__getitem__, lambda _: moments, [[0, 1]], ["first"])["first"][0][1]
    assert np.array_equal(found, order.numpy())
    nothing = {name: torch.zeros_like(value) for name, value in own.items()}
    assert not alignment.Costs(nothing, moments).of(reference).any()


@every_fault
@tiny.every_family
@pytest.mark.parametrize("base", ["first", "mean", "regression"])
def test_sharing_with_blocks_of_zeros_is_finite(base, name, fault):
    built, calibration = expanded(name, fault)
    ways = [("none", "least_squares"), ("svd", "none"), ("weighted", "none")]
    for delta, fixed in [*ways, ("joint", "none")] if base == "regression" else ways:
        spec = tiny.share(
            0 if delta == "none" else 3, alignment="cost", reference="centre", base=base, delta=delta, repair=fixed,
            bias_correction=True,
        )  # fmt: skip
        assert sound(tiny.operate(built, tiny.GROUPS, calibration, spec)[0])


@every_fault
@tiny.every_family
@pytest.mark.parametrize("fixed", ["none", "scale", "least_squares", "differences"])
def test_collapsing_blocks_of_zeros_is_finite(fixed, name, fault):
    built, calibration = expanded(name, fault)
    base = "first" if fixed == "differences" else "regression"
    spec = tiny.collapse(alignment="cost", base=base, repair=fixed)
    for groups in (tiny.GROUPS, [[1, 2]], [[3, 4]]):
        assert sound(tiny.operate(built, groups, calibration, spec)[0])


@every_fault
@tiny.every_family
@pytest.mark.parametrize("fit", ["svd", "weighted"])
@pytest.mark.parametrize("chosen", ["equal", "filled"])
def test_low_rank_of_zeros_is_finite_and_takes_no_rank_from_others(chosen, fit, name, fault):
    built, calibration = expanded(name, fault)
    spec = LowRank(method="low_rank", fit=fit, ranks=chosen, bias_correction=True, target_parameters=0.8)
    thin, sharing = tiny.operate(built, [], calibration, spec)
    assert sound(thin)
    if chosen == "filled":
        empty = {"w_out": "out", "w_in": "in", "gate": "gate", "all": "in"}[fault]
        for layer in ("1", "3"):
            assert sharing.ranks[layer].get(empty, 0) == 0


@every_fault
@tiny.every_family
def test_a_budget_of_ranks_and_a_search_with_blocks_of_zeros(name, fault):
    built, calibration = expanded(name, fault)
    spec = tiny.share(2, alignment="cost", reference="centre", base="regression", delta="joint", bias_correction=True)
    moving = spec.model_copy(update={"gains": "moving_base"})
    for one, group in itertools.product((spec, moving), ([0, 1, 2], [1, 2])):
        for values in ranks.gains(tiny.view(built), group, calibration, one).values():
            assert values.isfinite().all() and (values >= 0).all()
    score = lambda view: float(tiny.logits(view.model).square().mean())  # noqa: E731
    for wanted in (Best(choose="best", sizes=[2]), Budget(choose="budget", sizes=[2], target_parameters=0.9)):
        found = window_search.search(tiny.view(built), calibration, spec, wanted, score)
        assert all(np.isfinite(layout.perplexity) for layout in found.scored)


def test_a_weight_of_zero_gains_nothing():
    zero, some = torch.zeros(4, 6, dtype=torch.float64), torch.ones(4, 6, dtype=torch.float64)
    assert not budgets.gains(zero, zero).any() and not budgets.gains(zero, some).any()
    given = {(0, "in"): budgets.gains(zero, zero), (1, "in"): budgets.gains(some, some)}
    assert budgets.water_fill(given, dict.fromkeys(given, (4, 6)), 10) == {"0": {"in": 0}, "1": {"in": 1}}


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e6])
def test_inputs_that_never_vary_have_a_factor_once_centred(scale):
    stream = MomentStream()
    for seed in range(5):
        rows = scale * torch.linspace(-3, 5, 40).sin().expand(200, 40).clone()
        rows[:, :3] += (0 if scale else 1) * torch.randn(200, 3, generator=torch.Generator().manual_seed(seed))
        stream.update(rows)
    centred = stream.moments().centred()
    assert centred.factor().isfinite().all()
    assert not centred.second[3:].any() and not centred.second[:, 3:].any()


@pytest.mark.parametrize("base", ["first", "mean", "regression"])
def test_without_any_input_the_fits_are_finite(base):
    nothing = Moments(torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64))
    weights = [torch.randn(4, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(3)]
    for delta in ("none", "zero", "svd", "weighted", "joint"):
        fitted = fitting.fit(weights, [nothing] * 3, base, delta, [2, 1, 0])
        assert all(fitted.weight(member).isfinite().all() for member in range(3))
    joint = Moments(torch.zeros(10, dtype=torch.float64), torch.zeros(10, 10, dtype=torch.float64))
    old = {"w_out": weights[0], "b_out": torch.ones(4, dtype=torch.float64)}
    assert torch.equal(repair.least_squares(old, joint)["w_out"], weights[0])
    assert all(value.isfinite().all() for value in repair.scaled({"w_out": weights[0]}, Moments(*(
        torch.zeros(8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)))).values())  # fmt: skip


@tiny.every_family
def test_a_block_of_zeros_has_no_influence_and_is_dropped_first(name):
    built = tiny.model(name)
    with torch.no_grad():
        for parameter in tiny.view(built).blocks[2].parameters():
            parameter.zero_()
        built.get_input_embeddings().weight[:50] = 0
        if name == "gpt2":
            built.transformer.wpe.weight.zero_()
    found = influence(tiny.view(built), TEXT)
    assert found[2].abs() < 1e-9 and found.isfinite().all()
    calibration = Calibration(None, None, lambda: TEXT)
    dropped, _ = tiny.operate(built, [], calibration, Drop(method="drop", layers=1))
    assert tiny.gap(built, dropped) < 1e-5


def test_an_error_of_nothing_is_nothing():
    wanted = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    found = torch.tensor([[3.0, 5.0], [1.0, 1.0]], requires_grad=True)
    error = recovery.relative_error(found, wanted)
    error.backward()
    assert error.item() == pytest.approx(0.02) and found.grad.isfinite().all() and not found.grad[1].any()
