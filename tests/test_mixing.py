"""One budget over all forms: the choice is optimal at every price, fits the budget, and is no worse than one form."""

import itertools
import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import targets
from stages.core.forms.modeling_shared_ffn import MaskedLinear
from stages.core.settings.variants import Forms, LowRank, Prune
from stages.core.shrinking import baselines, mixing
from stages.core.shrinking.mixing import GONE, Option

MATRICES = [(layer, role) for layer in (0, 1) for role in ("in", "out")]


@given(seed=st.integers(0, 999), price=st.floats(1e-3, 0.2))
def test_at_every_price_no_other_choice_is_better(seed, price):
    generator = torch.Generator().manual_seed(seed)

    def option(stored):
        return Option(stored, torch.rand(1, generator=generator, dtype=torch.float64).item(), {"form": "low_rank"})

    every = {matrix: [Option(0, 1.0, GONE), *map(option, (3, 5, 9, 14)), Option(20, 0.0, {})] for matrix in MATRICES}
    weights = dict(zip(MATRICES, (1.0, 0.1, 3.0, 0.5)))

    def harm(matrix, error):
        return weights[matrix] * error

    ways = [
        (sum(option.stored for option in way), sum(harm(matrix, o.error) for matrix, o in zip(every, way)))
        for way in itertools.product(*every.values())
    ]
    stored, least = min(ways, key=lambda way: way[1] + price * way[0])
    chosen = mixing.allot(every, harm, stored)
    assert sum(option.stored for option in chosen.values()) <= stored
    assert sum(harm(matrix, option.error) for matrix, option in chosen.items()) == pytest.approx(least)


def test_harm_runs_through_the_probes_and_never_falls():
    probes = {(0, "in"): [(0.1, 0.02), (0.4, 0.2)], (0, "out"): [(0.1, -0.01), (0.3, -0.02)], (1, "in"): []}
    harm = mixing.harm_by(probes, 0.01)
    assert [harm((0, "in"), error) - 0.01 * error for error in (0.0, 0.05, 0.1, 0.4, 1.0)] == pytest.approx(
        [0.0, 0.01, 0.02, 0.2, 0.2 + 0.6 * 0.6]
    )
    for matrix in probes:
        values = [harm(matrix, error / 50) for error in range(51)]
        assert values == sorted(values) and values[-1] > 0
    assert mixing.harm_by(probes, None)((0, "out"), 0.3) == 0.3


@pytest.mark.parametrize("name, share", [("gpt2", 0.9), ("llama", 0.7)])
def test_a_mixture_fits_its_budget_and_is_no_worse_than_its_forms_alone(name, share):
    model = tiny.model(name)
    view, known, text = tiny.view(model), tiny.calibration(model), tiny.ids(4, seed=5)

    def score(changed):
        with torch.no_grad():
            return math.exp(changed.model(text, labels=text).loss.item())

    spec = Forms(choose="forms", target_parameters=share)
    probed = mixing.probe_all(view, known, spec.forms, score)
    tried = mixing.search(view, known, spec, probed, score)
    assert probed.original == score(view) and [one.perplexity for one in tried] == sorted(
        one.perplexity for one in tried
    )
    assert {tuple(one.forms) for one in tried} == {("low_rank", "sparse"), ("low_rank",), ("sparse",)}
    target = targets.target(view.shape, share)
    for one in tried:
        changed, sharing = mixing.mix(view, known, one.plan)
        assert tiny.count(changed.model)["parameters"] <= target
        assert score(changed) == one.perplexity
        assert bool(sharing.kept) <= ("sparse" in one.forms)
    for ranks in ("equal", "filled"):
        low = LowRank(method="low_rank", fit="weighted", ranks=ranks, bias_correction=True, target_parameters=share)
        assert tried[0].perplexity <= score(baselines.low_rank(view, known, low)[0]) * (1 + 1e-6)
    # `prune` alone corrects no bias, so it is compared where there is none.
    if name == "llama":
        pruned = baselines.prune(view, known, Prune(method="prune", target_parameters=share))[0]
        assert tried[0].perplexity <= score(pruned) * (1 + 1e-6)


def test_a_mixture_survives_the_disk(tmp_path):
    model = tiny.model("gpt2")
    forms = (
        {"form": "sparse", "kept": 100, "score": "input"},
        {"form": "low_rank", "rank": 2},
        GONE,
        {"form": "dense"},
    )
    plan = {"0": {"in": forms[0], "out": forms[1]}, "2": {"in": forms[2], "out": forms[3]}}
    changed, sharing = mixing.mix(tiny.view(model), tiny.calibration(model), plan)
    assert sharing.kept == {"0": {"in": 100}} and sharing.ranks == {"0": {"out": 2}, "2": {"in": 0}}
    tiny.save(changed.model, sharing, tmp_path / "model")
    loaded, found = tiny.load(tmp_path / "model")
    assert found == sharing and tiny.gap(loaded, changed.model) == 0
    assert tiny.gap(tiny.dense(loaded), changed.model) <= 1e-4


def test_a_masked_map_stores_its_entries_and_trains_only_them():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 5, generator=generator) * (torch.rand(6, 5, generator=generator) < 0.4)
    kept, x = int((matrix != 0).sum()), torch.randn(3, 5, generator=generator)
    linear = MaskedLinear(kept, 5, 6, torch.nn.Parameter(torch.ones(6)))
    linear.store(matrix)
    assert torch.equal(linear.matrix(), matrix)
    torch.testing.assert_close(linear(x), x @ matrix.T + 1)
    linear(x).square().sum().backward()
    assert linear.values.grad.shape == (1, kept) and linear.values.grad.ne(0).all()
    with torch.no_grad():
        before = linear(x)
        linear.values += 1
        assert not torch.equal(linear(x), before)
        torch.testing.assert_close(linear(x), x @ (matrix + (matrix != 0)).T + 1)
    # Entries that happen to be zero fill up what is kept.
    fuller = MaskedLinear(kept + 3, 5, 6, None)
    fuller.store(matrix)
    assert torch.equal(fuller.matrix(), matrix)
