"""Which windows are shared, and how much rank they get: exact where theory is, honest about its budget always."""

import itertools
import math
import random

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import windows
from stages.core.settings.windows import Best, Budget
from stages.core.shrinking import budgets, members, operations, ranks, window_search
from stages.core.shrinking.window_search import search


@given(depth=st.integers(4, 9), seed=st.integers(0, 999), keep=st.integers(1, 3))
def test_layouts_are_the_cheapest_of_all_there_are(depth, seed, keep):
    chance = random.Random(seed)
    costs = {window: chance.uniform(-1, 5) for window in windows.contiguous(depth, [2, 3])}
    every: dict[tuple[int, int], list[float]] = {}
    for count in range(1, depth // 2 + 1):
        for chosen in itertools.combinations(sorted(costs), count):
            if all(a[1] < b[0] for a, b in zip(chosen, chosen[1:])):
                key = (count, windows.saved(chosen))
                every.setdefault(key, []).append(sum(costs[window] for window in chosen))
    found: dict[tuple[int, int], list[float]] = {}
    for cost, layout in windows.layouts(costs, depth, keep):
        assert cost == pytest.approx(sum(costs[window] for window in layout))
        found.setdefault((len(layout), windows.saved(layout)), []).append(cost)
    assert found.keys() == every.keys()
    for key, values in every.items():
        assert found[key] == pytest.approx(sorted(values)[:keep])


def test_excluded_layers_lie_in_no_window():
    assert windows.contiguous(6, [2], [2]) == [(0, 1), (3, 4), (4, 5)]
    assert windows.contiguous(5, [3], [1, 3]) == [] == windows.contiguous(5, [6])


@given(budget=st.integers(0, 900), seed=st.integers(0, 999))
def test_water_filling_spends_what_it_can_and_no_more(budget, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {(layer, role): shape for layer in (3, 4) for role, shape in {"in": (12, 5), "out": (5, 12)}.items()}
    gains = {matrix: torch.rand(5, generator=generator).sort(descending=True).values for matrix in shapes}
    found = budgets.water_fill(gains, shapes, budget)
    spent = sum(17 * rank for roles in found.values() for rank in roles.values())
    assert spent <= budget and all(17 * rank <= 60 for roles in found.values() for rank in roles.values())
    full = all(17 * (rank + 1) > 60 for roles in found.values() for rank in roles.values())
    assert full or budget - spent < 17
    # No rank that was refused is worth more than one that was given.
    given = [gains[int(layer), r][:n].tolist() for layer, roles in found.items() for r, n in roles.items()]
    refused = [gains[int(layer), r][n:3].tolist() for layer, roles in found.items() for r, n in roles.items()]
    assert min([1.0, *sum(given, [])]) >= max([0.0, *sum(refused, [])])


@given(budget=st.integers(0, 150), price=st.floats(1e-3, 0.1), seed=st.integers(0, 999))
def test_keeping_matrices_dense_is_never_worse_and_best_at_every_price(budget, price, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {(layer, role): shape for layer in (3, 4) for role, shape in {"in": (6, 5), "out": (5, 6)}.items()}
    gains = {matrix: (torch.rand(5, generator=generator).double() ** 3).sort(descending=True).values
             for matrix in shapes}  # fmt: skip

    def cost(found):
        stored = error = 0
        for matrix, values in gains.items():
            rank = found.get(matrix)
            stored += 30 if rank is None else 11 * rank
            error += 0.0 if rank is None else values[rank:].sum().item()
        return stored, error

    def chosen(budget):
        found = budgets.factor_or_keep(gains, shapes, budget)
        assert all(11 * rank < 30 for rank in found.values())
        return cost(found)

    stored, error = chosen(budget)
    filled = budgets.water_fill(gains, shapes, budget)
    alone = {(int(layer), role): rank for layer, roles in filled.items() for role, rank in roles.items()}
    assert stored <= budget and error <= cost(alone)[1] + 1e-12
    # By brute force: the best way at a price per parameter is found with what that way stores.
    ways = [
        cost({matrix: rank for matrix, rank in zip(gains, each) if rank is not None})
        for each in itertools.product([0, 1, 2, None], repeat=4)
    ]
    stored, error = min(ways, key=lambda way: way[1] + price * way[0])
    assert chosen(stored) == (stored, pytest.approx(error, abs=1e-9))


def test_gains_are_the_relative_errors_that_ranks_take_away():
    built, spec = tiny.model("gpt2"), tiny.share(4, base="regression", delta="weighted")
    known = tiny.calibration(built)
    group = members.aligned(tiny.view(built), [0, 1, 2], known, spec)
    for (layer, role), values in ranks.gains(tiny.view(built), [0, 1, 2], known, spec).items():
        moments = group[layer].moments[members.SITE[role]]
        left = []
        for rank in (0, 4):
            fitted = members.fit_role(group, role, "regression", "weighted" if rank else "none", [rank] * 3)
            missing = group[layer].ffn[f"w_{role}"] - fitted.weight(layer)
            left.append((missing @ moments.root).square().sum())
        whole = (group[layer].ffn[f"w_{role}"] @ moments.root).square().sum()
        torch.testing.assert_close(values[:4].sum(), (left[0] - left[1]) / whole, rtol=1e-6, atol=1e-9)


def score(model):
    """A perplexity of sorts: how far the logits are from those of the original."""
    return 2.0 + (tiny.logits(model) - tiny.logits(tiny.model("gpt2"))).square().mean().item()


def found(**wanted):
    built = tiny.model("gpt2")
    kind = Budget if wanted["choose"] == "budget" else Best
    spec = tiny.share(2, base="regression", delta="weighted")
    view, calibration = tiny.view(built), tiny.calibration(built)
    return built, spec, search(view, calibration, spec, kind(**wanted), lambda changed: score(changed.model))


def test_one_window_is_the_cheapest_for_each_layer_saved():
    _, _, result = found(choose="best", sizes=[2, 3])
    assert [layout.windows for layout in result.scored] == [((i, i + 1),) for i in range(4)] + [
        ((i, i + 2),) for i in range(3)
    ]
    price = {s.windows: math.log(s.perplexity / result.original) / windows.saved(s.windows) for s in result.scored}
    assert price[result.chosen.windows] == min(price.values())


@pytest.mark.parametrize("most", [window_search.STATES, 9000, 0])
@pytest.mark.parametrize("kind", ["share", "collapse"])
def test_recorded_states_change_no_perplexity(kind, most, monkeypatch):
    monkeypatch.setattr(window_search, "STATES", most)
    built = tiny.model("gpt2")
    spec = tiny.share(2, base="regression", delta="weighted") if kind == "share" else tiny.collapse()
    view, calibration = tiny.view(built), tiny.calibration(built)
    found = search(view, calibration, spec, Best(choose="best", sizes=[2]), lambda changed: score(changed.model))
    for layout in found.scored:
        alone, _ = operations.operate(view, [windows.layers(layout.windows[0])], calibration, spec)
        assert layout.perplexity == pytest.approx(score(alone.model), rel=1e-6)


def test_a_window_starts_from_recorded_states(monkeypatch):
    built, runs = tiny.model("gpt2"), {layer: [] for layer in range(tiny.LAYERS)}
    view = tiny.view(built)
    for layer, block in enumerate(view.blocks):
        block.attn.register_forward_hook(lambda *_, layer=layer: runs[layer].append(1))
    wanted = Best(choose="best", sizes=[2])
    search(view, tiny.calibration(built), tiny.share(), wanted, lambda changed: tiny.logits(changed.model).exp().mean())
    # The original, and the windows that start there or before.
    assert [len(runs[layer]) for layer in range(tiny.LAYERS)] == [2, 3, 4, 5, 5]


def test_layers_with_deltas_are_refitted_when_their_windows_are_known():
    built, wanted = tiny.model("gpt2"), Budget(choose="budget", sizes=[2], target_parameters=0.9)
    texts = []

    def chosen(**refits):
        known, spec = tiny.calibration(built), tiny.share(2, base="regression", delta="joint", **refits)
        text, known.text = known.text, lambda: texts.append(refits) or text()
        return search(tiny.view(built), known, spec, wanted, lambda changed: score(changed.model))

    assert chosen(repair="least_squares", refit_others=True) == chosen(repair="none") and not texts
    once = Best(choose="best", sizes=[2])  # without deltas a repair is what the method is
    merged = [
        search(tiny.view(built), tiny.calibration(built), tiny.share(repair=repair), once, lambda m: score(m.model))
        for repair in ("least_squares", "none")
    ]
    assert merged[0].scored != merged[1].scored


def test_two_windows_are_disjoint_and_scored_together():
    built, spec, result = found(choose="best", sizes=[2], count=2, shortlist=3)
    layouts = [layout for layout in result.scored if len(layout.windows) == 2]
    assert len(layouts) == 3 and result.chosen == min(layouts, key=lambda layout: layout.perplexity)
    groups = [windows.layers(window) for window in result.chosen.windows]
    assert not set(groups[0]) & set(groups[1])
    alone = tiny.operate(built, groups, tiny.calibration(built), spec)[0]
    assert result.chosen.perplexity == score(alone)


@pytest.mark.parametrize("target", [0.9, 0.8])
def test_a_budget_is_kept_and_spent(target):
    built, spec, result = found(choose="budget", sizes=[2, 3], target_parameters=target)
    groups = [windows.layers(window) for window in result.chosen.windows]
    changed, sharing = tiny.operate(built, groups, tiny.calibration(built), spec, result.chosen.ranks)
    whole, stored = (sum(p.numel() for p in model.parameters()) for model in (built, changed))
    assert stored <= target * whole and stored > target * whole - tiny.WIDTH - 4 * tiny.WIDTH
    assert result.chosen.perplexity == score(changed)


def test_ranks_of_single_matrices_survive_a_file(tmp_path):
    built, spec, result = found(choose="budget", sizes=[3], target_parameters=0.9)
    groups = [windows.layers(window) for window in result.chosen.windows]
    changed, sharing = tiny.operate(built, groups, tiny.calibration(built), spec, result.chosen.ranks)
    tiny.save(changed, sharing, tmp_path / "model")
    back, again = tiny.load(tmp_path / "model")
    assert again == sharing and torch.equal(tiny.logits(back), tiny.logits(changed))
    assert tiny.gap(tiny.dense(back), changed) < 1e-4
