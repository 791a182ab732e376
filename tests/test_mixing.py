"""One budget over all forms: the choice is optimal at every price, fits the budget, and is no worse than one form."""

import itertools
import math

import pytest
import tiny
import tiny_vision
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from stages.core.architecture import targets, windows
from stages.core.architecture.depth import Walk
from stages.core.calibration.moments import Moments
from stages.core.forms import counting
from stages.core.forms.modeling_shared_ffn import MaskedLinear
from stages.core.running import quantities
from stages.core.settings.surgeries import Drop, LowRank, Prune
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Budget, Forms, Layers
from stages.core.shrinking import (
    arranging,
    baselines,
    layer_search,
    making,
    mixing,
    operations,
    options,
    probes,
    refitting,
    window_search,
)
from stages.core.shrinking.options import DENSE, GONE, Option
from stages.core.shrinking.repair import RIDGE
from stages.core.text.corpus import Stream

MATRICES = [(layer, role) for layer in (0, 1) for role in ("in", "out")]


@given(seed=st.integers(0, 999), price=st.floats(1e-3, 0.2))
def test_at_every_price_no_other_choice_is_better(seed, price):
    generator = torch.Generator().manual_seed(seed)

    def option(stored):
        return Option(stored, torch.rand(1, generator=generator, dtype=torch.float64).item(), {"form": "low_rank"})

    every = {matrix: [Option(0, 1.0, GONE), *map(option, (3, 5, 9, 14)), Option(20, 0.0, {})] for matrix in MATRICES}
    weights = dict(zip(MATRICES, (1.0, 0.1, 3.0, 0.5)))

    def harm(matrix, option):
        return weights[matrix] * option.error

    ways = [
        (sum(option.stored for option in way), sum(harm(matrix, o) for matrix, o in zip(every, way)))
        for way in itertools.product(*every.values())
    ]
    stored, least = min(ways, key=lambda way: way[1] + price * way[0])
    chosen = mixing.allot(every, harm, stored)
    assert sum(option.stored for option in chosen.values()) <= stored
    assert sum(harm(matrix, option) for matrix, option in chosen.items()) == pytest.approx(least)


def test_harm_runs_through_the_probes_and_never_falls():
    lines = {"sparse": [(0.4, 0.2), (0.1, 0.02)], "low_rank": [(0.1, 0.03), (0.3, 0.01)]}
    harm = probes.harm_by({(0, "in"): lines, (0, "out"): {"sparse": []}})

    def of(error, form="sparse", matrix=(0, "in")):
        return harm(matrix, Option(1, error, {"form": form}))

    assert [of(error) for error in (0.0, 0.05, 0.1, 0.4, 1.0)] == pytest.approx([0.0, 0.01, 0.02, 0.2, 0.2 + 0.6 * 0.6])
    for form in lines:
        values = [of(error / 50, form) for error in range(51)]
        assert values == sorted(values) and values[-1] > 0
    assert harm((0, "in"), Option(9, 0.0, DENSE)) == 0
    assert harm((0, "in"), Option(0, 1.0, GONE)) == pytest.approx(of(1.0, "low_rank"))
    assert of(0.3, matrix=(0, "out")) == 0.3 == probes.harm_by(None)((0, "out"), Option(1, 0.3, {}))


def test_probes_that_resume_are_those_of_whole_passes():
    view, known = tiny.view(tiny.model("gpt2")), tiny.calibration(tiny.model("gpt2"))
    text = Stream(tiny.ids(1, 60, seed=5)[0])
    judge = probes.judge_by(tiny.TASK, text, "cpu")
    found, reference = probes.probe_all(view, known, ["low_rank"], judge), judge.reference(view)
    assert judge.divergence(view, reference) == pytest.approx(0, abs=1e-6)
    for matrix in [(0, "in"), (2, "out"), (4, "in")]:
        found_alone = probes.tried(found.options[matrix], ["low_rank"])
        whole = [
            judge.divergence(making.mix(view, known, {str(matrix[0]): {matrix[1]: option.form}})[0], reference)
            for _, option in found_alone
        ]
        assert [harm for _, harm in found.probes[matrix]["low_rank"]] == pytest.approx(whole, rel=1e-4)
        assert [error for error, _ in found.probes[matrix]["low_rank"]] == [option.error for _, option in found_alone]


def test_answers_are_compared_on_the_head_of_what_is_scored(monkeypatch):
    view, text = tiny.view(tiny.model("gpt2")), Stream(tiny.ids(1, 60, seed=5)[0], start=1)
    monkeypatch.setattr(probes, "COMPARED", 20)
    judge, alone = probes.judge_by(tiny.TASK, text, "cpu"), probes.judge_by(tiny.TASK, text[:20], "cpu")
    other = tiny.view(tiny.model("gpt2", seed=1))
    assert judge.divergence(other, judge.reference(view)) == alone.divergence(other, alone.reference(view)) > 0
    assert judge.score(view) == tiny.TASK.score(view.model, text) != alone.score(view)


@pytest.mark.parametrize("name, share", [("gpt2", 0.9), ("llama", 0.7)])
def test_a_mixture_fits_its_budget_and_is_no_worse_than_its_forms_alone(name, share):
    model = tiny.model(name)
    view, known, text = tiny.view(model), tiny.calibration(model), tiny.ids(4, seed=5)

    def score(changed):
        with torch.no_grad():
            return math.exp(changed.model(text, labels=text).loss.item())

    judge = probes.Judge(score, score, lambda view, original: abs(math.log(score(view) / original)))
    spec = Forms(choose="forms", target_parameters=share)
    probed = probes.probe_all(view, known, spec.forms, judge)
    tried = mixing.search(view, known, spec, probed, judge)
    assert probed.original == score(view) and [one.perplexity for one in tried] == sorted(
        one.perplexity for one in tried
    )
    assert {tuple(one.forms) for one in tried} == {("low_rank", "sparse"), ("low_rank",), ("sparse",)}
    target = targets.target(view.shape, share)
    for one in tried:
        changed, sharing = making.mix(view, known, one.plan)
        assert tiny.count(changed.model)["parameters"] <= target
        assert score(changed) == one.perplexity
        assert bool(sharing.kept) <= ("sparse" in one.forms)
    for ranks in ("equal", "filled"):
        low = LowRank(method="low_rank", fit="weighted", ranks=ranks, bias_correction=True, target_parameters=share)
        assert tried[0].perplexity <= score(baselines.low_rank(view, known, low)[0]) * (1 + 1e-6)
    for way in ({}, {"score": "input", "scope": "row"}):
        pruned = baselines.prune(view, known, Prune(method="prune", target_parameters=share, **way))[0]
        assert tried[0].perplexity <= score(pruned)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_plans_of_pruning_alone_are_pruning(name):
    """Bit for bit, also where there are biases: pruning alone corrects none, and scores by plain second moments."""
    view, known = tiny.view(tiny.model(name)), tiny.calibration(tiny.model(name))
    ways = {"all": Prune(method="prune", target_parameters=0.8)}
    ways["row"] = Prune(method="prune", score="input", scope="row", target_parameters=0.8)
    plans = list(mixing._pruned(view, known, 0.8))
    own = [linear.bias for linear in view.linears(0).values() if linear.bias is not None]
    plain = plans[::2] if own else plans  # each is followed by that with corrected biases
    for plan, way in zip(plain, ways.values(), strict=True):
        expected, sharing = baselines.prune(view, known, way)
        changed, found = making.mix(view, known, plan)
        assert found.kept == sharing.kept and tiny.same(tiny.state(changed.model), tiny.state(expected.model))
    for plan in plans[1::2] if own else []:
        changed, _ = making.mix(view, known, plan)
        assert not any(torch.equal(one.bias, other) for one, other in zip(changed.linears(0).values(), own))


def test_a_mixture_of_stages_of_different_width_fits_its_budget():
    """Swin: matrices of each layer's own shape, answers compared over labels."""
    view, images = tiny_vision.view("swin"), tiny_vision.pixels(6, seed=3)
    known = tiny_vision.calibration(view)

    def answers(changed):
        return tiny_vision.logits(changed.model, images).double().log_softmax(1)

    def divergence(changed, reference):
        return (reference.exp() * (reference - answers(changed))).sum(1).mean().item()

    judge = probes.Judge(lambda changed: 2 + divergence(changed, answers(view)), answers, divergence)
    spec = Forms(choose="forms", target_parameters=0.8)
    probed = probes.probe_all(view, known, spec.forms, judge)
    assert all(harm >= 0 for lines in probed.probes.values() for line in lines.values() for _, harm in line)
    tried = mixing.search(view, known, spec, probed, judge)
    for one in tried:
        changed, _ = making.mix(view, known, one.plan)
        assert counting.count(changed)["parameters"] <= targets.target(view.shape, 0.8)
    assert tried[0].by != "baseline" and tried[0].perplexity < max(one.perplexity for one in tried)


@pytest.mark.parametrize("role", ["in", "out"])
def test_refitted_entries_leave_less_error_in_every_round_down_to_the_least(role):
    weight, moments = options.read(tiny.view(tiny.model("gpt2")), tiny.calibration(tiny.model("gpt2")), 1, role)
    generator = torch.Generator().manual_seed(0)
    stay = (torch.rand(weight.shape, generator=generator) < 0.5).double()
    # Moments of full rank, so that the least error belongs to one matrix.
    moments = Moments(moments.mean, moments.second + moments.second.diagonal().mean() * torch.eye(len(moments.second)))

    def error(matrix):
        return ((weight - matrix) @ moments.ridged() * (weight - matrix)).sum().item()

    rounds = [options.refitted(weight, moments, stay, number) for number in range(8)]
    errors = [error(matrix) for matrix in rounds]
    assert torch.equal(rounds[0], weight * stay) and errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] and all((matrix[stay == 0] == 0).all() for matrix in rounds)
    least, right = torch.zeros_like(weight), weight @ moments.ridged()
    for row, chosen in enumerate(stay.bool()):
        least[row, chosen] = torch.linalg.solve(moments.ridged()[chosen][:, chosen], right[row, chosen])
    final = options.refitted(weight, moments, stay, 200)
    torch.testing.assert_close(final, least, rtol=1e-6, atol=1e-8)
    assert torch.equal(options.refitted(weight, moments, torch.ones_like(weight)), weight)


def test_a_mixture_survives_the_disk(tmp_path):
    model = tiny.model("gpt2")
    forms = (
        {"form": "sparse", "kept": 100, "score": "input", "refit": True},
        {"form": "low_rank", "rank": 2},
        GONE,
        {"form": "dense"},
    )
    plan = {"0": {"in": forms[0], "out": forms[1]}, "2": {"in": forms[2], "out": forms[3]}}
    changed, sharing = making.mix(tiny.view(model), tiny.calibration(model), plan)
    assert sharing.kept == {"0": {"in": 100}} and sharing.ranks == {"0": {"out": 2}, "2": {"in": 0}}
    shares = making.shares(tiny.view(model), plan)
    assert shares["1"] == {"in": 1.0, "out": 1.0} and shares["2"] == {"in": 0.0, "out": 1.0}
    assert shares["0"] == pytest.approx({"in": (100 + 128) / 4096, "out": 2 * 160 / 4096})
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
    # A fused step changes values, but not their version.
    linear(x).square().sum().backward()
    torch.optim.AdamW([linear.values], lr=0.1, fused=True).step()
    with torch.no_grad():
        torch.testing.assert_close(linear(x), x @ linear.matrix().T + 1)
    # Entries that happen to be zero fill up what is kept.
    fuller = MaskedLinear(kept + 3, 5, 6, None)
    fuller.store(matrix)
    assert torch.equal(fuller.matrix(), matrix)


@pytest.fixture(scope="module")
def whole():
    """A small model, its calibration, a judge of it, and all plans of all forms that were tried at 0.7 of its size."""
    view, known, text = tiny.view(tiny.model("gpt2")), tiny.calibration(tiny.model("gpt2")), tiny.ids(2, seed=5)

    def score(changed):
        with torch.no_grad():
            return math.exp(changed.model(text, labels=text).loss.item())

    judge = probes.Judge(score, score, lambda view, original: abs(math.log(score(view) / original)))
    spec = Forms(choose="forms", forms=["low_rank", "sparse", "share", "drop"], target_parameters=0.7)
    tried = mixing.search(view, known, spec, probes.probe_all(view, known, spec.forms, judge), judge)
    return view, known, judge, tried


def test_a_row_of_zeros_costs_a_pruned_plan_no_entry():
    """The baseline counts what is not zero; the plan that is made of it keeps as much."""
    weight = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    moments = Moments(torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64))
    kept = options.sparse(weight, moments, 5 * 7, "row")
    assert ((kept != 0).sum(1) == torch.tensor([7, 7, 0, 7, 7, 7])).all()


def test_a_mixture_of_all_forms_fits_its_budget(whole):
    view, known, judge, tried = whole
    kinds = {tuple(form for form in one.forms if form in ("share", "drop")) for one in tried if one.by == "divergence"}
    assert kinds >= {(), ("share",), ("drop",), ("share", "drop")}
    assert [one.perplexity for one in tried] == sorted(one.perplexity for one in tried)
    for one in tried:
        changed, sharing = making.mix(view, known, one.plan, one.layers)
        assert counting.count(changed)["parameters"] <= targets.target(view.shape, 0.7)
        assert len(sharing.groups) == len(one.layers.groups)
        assert changed.depth == view.depth - len(one.layers.gone)


def test_sharing_and_dropping_alone_are_the_single_methods(whole):
    """Bit for bit, and among what is tried, so that the best plan is no worse than they are."""
    view, known, judge, tried = whole
    # Of layers that are gone, those by influence: those by perplexity are no worse and stand before them.
    alone = {tuple(one.forms): one for one in tried if one.by == "baseline" and one.layers != making.NO_LAYERS}
    searched = Layers(choose="layers", target_parameters=0.7)
    least = layer_search.search(view, known, searched, judge.score)[0].perplexity
    assert next(one for one in tried if (one.forms, one.by) == (["drop"], "baseline")).perplexity == least
    spec = Budget(choose="budget", sizes=[2, 3], target_parameters=0.7)
    chosen = window_search.search(view, known, making.SHARED, spec, judge.score).chosen
    groups = [windows.layers(window) for window in chosen.windows]
    expected = {
        ("share",): operations.operate(view, groups, known, making.SHARED, chosen.ranks),
        ("drop",): baselines.drop(view, known, Drop(method="drop", target_parameters=0.7)),
    }
    assert alone.keys() == expected.keys()
    for name, (model, sharing) in expected.items():
        mixed, found = making.mix(view, known, alone[name].plan, alone[name].layers)
        assert found == sharing and tiny.same(tiny.state(mixed.model), tiny.state(model.model))
        assert alone[name].perplexity == judge.score(model) >= tried[0].perplexity


@pytest.mark.parametrize("best", [0, 9])
def test_groups_that_sharing_alone_chooses_are_tried_whatever_single_windows_promise(best):
    """Once, also where they are among the arrangements of least harm."""
    every = [
        arranging.Arrangement([[number, number + 1]], gone, 0, float(number), {}, number == best)
        for number in range(10)
        for gone in ([], [11])
    ]
    found = [(kinds, layers.groups[0][0]) for kinds, _, layers in mixing._promising(every, {}, max, 1)]
    firsts = {0: [0, 1, 2, 3], 9: [0, 1, 2, 3, 9]}[best]
    assert found == [(kinds, first) for kinds in (["share"], ["share", "drop"]) for first in firsts]


def test_the_groups_of_sharing_alone_go_with_every_price_and_every_missing_layer(whole):
    view, known, judge, tried = whole
    spec = Forms(choose="forms", forms=["low_rank", "share", "drop"], target_parameters=0.7)
    arranged = arranging.arrange(view, known, spec, arranging.survey(view, known, spec, judge), judge)
    ((_, alone),) = [one for one in arranged.alone if one[0] == "share"]
    scored = [one for one in arranged.every if one.scored]
    assert [one.groups for one in scored if not one.gone] == [alone.groups]
    for one in scored:
        assert one.groups == [group for group in alone.groups if not set(group) & set(one.gone)]
    assert any(one.gone for one in scored)
    kinds = [one.forms for one in tried if one.by == "divergence" and one.layers.groups == alone.groups]
    assert ["low_rank", "share"] in kinds and ["low_rank", "sparse", "share"] in kinds


def test_entries_are_refitted_where_moments_are_not_quite_positive():
    """Sums of float32 products have eigenvalues below 0; along these a step would go to infinity."""
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([1.0, 0.5, 0.1, *5 * [-1e-6]], dtype=torch.float64)
    moments = Moments(torch.zeros(8, dtype=torch.float64), turned * values @ turned.T)
    weight = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    stay = (torch.rand(64, 8, generator=generator) < 0.6).double()
    found = options.refitted(weight, moments, stay, 20)
    assert found.isfinite().all() and (found[stay == 0] == 0).all()
    before, after = (
        ((weight - matrix) @ moments.second * (weight - matrix)).sum() for matrix in (weight * stay, found)
    )
    assert after < before / 2


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_shared_and_missing_layers_beside_forms_survive_the_disk(name, tmp_path):
    view, known = tiny.view(tiny.model(name)), tiny.calibration(tiny.model(name))
    plan = {
        "0": {"in": {"form": "low_rank", "rank": 2}, "out": GONE},
        "4": {"out": {"form": "sparse", "kept": 100, "score": "input", "refit": True}},
    }
    ranks = {"2": dict.fromkeys(view.roles, 3), "3": dict.fromkeys(view.roles, 0)}
    layers = making.Layers([[2, 3]], ranks, [1])
    changed, sharing = making.mix(view, known, plan, layers)
    assert sharing.groups == [[1, 2]] and sharing.kept == {"3": {"out": 100}} and changed.depth == view.depth - 1
    assert sharing.ranks == {"0": {"in": 2, "out": 0}, "1": ranks["2"], "2": ranks["3"]}
    # As if the layer that is gone had never been there.
    kept = [0, *range(2, view.depth)]
    beside, _ = making.mix(view, known, plan, making.Layers([[2, 3]], ranks))
    for new, old in enumerate(kept):
        for role, linear in changed.linears(new).items():
            assert tiny.same(dict(linear.named_parameters()), dict(beside.linears(old)[role].named_parameters()))
    tiny.save(changed.model, sharing, tmp_path / "model")
    loaded, found = tiny.load(tmp_path / "model")
    assert found == sharing and tiny.gap(loaded, changed.model) == 0
    assert tiny.gap(tiny.dense(loaded), changed.model) <= 1e-4
    count = counting.count(tiny.view(loaded))["parameters"]
    assert count == counting.count(changed)["parameters"]
    shares = making.shares(view, plan, layers)
    matrices = {layer: view.shape.matrices_of(layer) for layer in range(view.depth)}
    stored = sum(shares[str(layer)][role] * o * i for layer in matrices for role, (o, i) in matrices[layer].items())
    assert count == pytest.approx(
        view.shape.parameters - view.shape.all_ffn_matrices + stored
        - (view.shape.stage_of(1).block - view.shape.ffn_matrices_of(1))
    )  # fmt: skip
    read = load_file(tmp_path / "model" / "model.safetensors")
    masks = {name: t for name, t in read.items() if t.dtype == torch.uint8}
    assert count == sum(t.numel() for name, t in read.items() if name not in masks) + sum(
        -(-t.numel() // 4) for t in masks.values()
    )


def test_mixtures_that_may_lose_layers_learn_no_hidden_states():
    said = {"choose": "forms", "forms": ["share", "drop"], "target_parameters": 0.8}
    variant = Variant(windows=said, surgery={"method": "mix"}, finetune={})
    assert variant.finetune.distill.hidden == 0.0 and variant.windows.size == 3
    hidden = {"distill": {"logits": 0.5, "hidden": 1.0}}
    with pytest.raises(ValueError, match="hidden needs the original's layers"):
        Variant(windows=said, surgery={"method": "mix"}, finetune=hidden)
    kept = Variant(windows=said | {"forms": ["share"]}, surgery={"method": "mix"}, finetune=hidden)
    assert kept.finetune.distill.hidden == 1.0


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_matrices_fitted_again_make_up_for_what_others_do_wrong(name):
    """Logits come closer to the original's on the text of the fit; what is stored and who shares stays as it is."""
    view, known = tiny.view(tiny.model(name)), tiny.calibration(tiny.model(name))
    plan = {
        "0": {"in": {"form": "low_rank", "rank": 2}, "out": {"form": "low_rank", "rank": 4}},
        "4": {"out": {"form": "sparse", "kept": 100, "score": "input", "refit": True}},
    }
    layers = making.Layers([[2, 3]], {"2": dict.fromkeys(view.roles, 3), "3": dict.fromkeys(view.roles, 0)}, [1])

    def error(changed):
        with torch.no_grad():
            return sum((view.model(b).logits - changed.model(b).logits).square().mean().item() for b in known.text())

    before, sharing = making.mix(view, known, plan, layers)
    after, structure = making.mix(view, known, plan, layers, again=True)
    assert structure == sharing and counting.count(after) == counting.count(before)
    assert error(after) < 0.95 * error(before)
    for role in view.roles:
        first, second = (after.linears(layer)[role] for layer in (1, 2))
        base = getattr(first, "base", first).weight
        assert base is getattr(second, "base", second).weight
        assert torch.equal(base, getattr(before.linears(1)[role], "base", before.linears(1)[role]).weight)
    # What is fitted to the original's own stream stays the original.
    same, _ = making.mix(view, known, {}, again=True)
    assert tiny.gap(view.model, same.model) <= 1e-4


def test_a_matrix_fitted_again_is_the_penalised_least_squares_matrix():
    """The gradient of E|t - W a' - b|^2 + c |W - W_now|^2 is zero in the last layer, all before it fitted already."""
    view, known = tiny.view(tiny.model("llama")), tiny.calibration(tiny.model("llama"))
    plan = {"0": {"in": GONE}}
    after, _ = making.mix(view, known, plan, again=True)
    broken, _ = making.mix(view, known, plan)
    last = view.depth - 1
    for layer in range(last):
        for part in ("weight", "bias"):
            getattr(broken.linears(layer)["out"], part).data.copy_(getattr(after.linears(layer)["out"], part))
    joint = refitting.wanted(Walk(view, list(known.text())), Walk(broken, list(known.text())), last, last)
    now, found = (changed.read_double(last)["w_out"] for changed in (broken, after))
    width = now.shape[1]
    whole = joint.centred().second
    second, crossed = whole[:width, :width], whole[width:, :width]
    penalty = RIDGE * second.diagonal().mean()
    gradient = found @ second - crossed + penalty * (found - now)
    assert gradient.abs().max() <= 1e-4 * (now @ second - crossed).abs().max()
    bias = joint.mean[width:] - found @ joint.mean[:width]
    torch.testing.assert_close(after.read_double(last)["b_out"], bias, rtol=0, atol=1e-5)


def test_a_mixture_fitted_again_is_chosen_by_validation(whole):
    view, known, judge, tried = whole
    spec = Forms(choose="forms", forms=["low_rank"], target_parameters=0.7, refit=True)
    probed = probes.probe_all(view, known, spec.forms, judge)
    found = mixing.search(view, known, spec, probed, judge)
    again = [one for one in found if one.by == "refit"]
    assert len(again) == 1 and found[0].perplexity == min(one.perplexity for one in found)
    for one in again:
        changed, _ = making.mix(view, known, one.plan, again=True)
        assert judge.score(changed) == one.perplexity
        assert counting.count(changed)["parameters"] <= targets.target(view.shape, 0.7)


@pytest.mark.parametrize("forms", [["low_rank", "share", "drop"], ["low_rank", "sparse"], ["sparse", "drop"]])
def test_the_best_of_each_set_of_forms_is_fitted_again_where_it_is_near(whole, forms):
    view, known, judge, _ = whole
    spec = Forms(choose="forms", forms=forms, target_parameters=0.7, refit=True)
    probed = probes.probe_all(view, known, spec.forms, judge)
    found = mixing.search(view, known, spec, probed, judge)
    plain, again = ([one for one in found if (one.by == "refit") == refit] for refit in (False, True))
    near = mixing._near(plain, probed.original)
    assert len(again) == len(near) and {frozenset(one.forms): (one.plan, one.layers) for one in again} == {
        frozenset(one.forms): (one.plan, one.layers) for one in near
    }
    # What `make check` counts is the most that there can be.
    assert len({frozenset(one.forms) for one in plain}) == quantities.sets(forms)


def test_near_is_near_the_best_of_all_or_of_those_without_sparse_matrices():
    def near(**perplexities):
        tried = [mixing.Tried(forms.split("_"), "error", math.exp(at), {}) for forms, at in perplexities.items()]
        return {"_".join(one.forms) for one in mixing._near(sorted(tried, key=lambda one: one.perplexity), 1.0)}

    assert near(sparse=0.2, sparse_drop=0.29, drop_sparse=0.3, share_sparse=0.31) == {"sparse", "sparse_drop"}
    assert near(sparse=0.2, drop=0.8, share=0.6, low_share=0.91) == {"sparse", "share", "drop"}
    assert near(share=-0.2, drop=-0.1, low=0.1) == {"share"}  # better than the original
