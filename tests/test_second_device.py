"""Everything that computes, on a device that is not the CPU: nothing mixes the two, and results are the CPU's."""

from contextlib import nullcontext
from types import SimpleNamespace

import methods
import pytest
import second_device
import tiny
import torch
from test_recovery import RECIPE, ROWS, USUAL

from stages.core.architecture.depth import influence
from stages.core.calibration import activations, alignment
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import MomentStream
from stages.core.evaluation import classification, summaries
from stages.core.settings.recoveries import Distill, Recovery
from stages.core.settings.trainings import HeadRecipe, Schedule
from stages.core.shrinking import ablation, making, probes
from stages.core.tasks import notes, timing
from stages.core.tasks.language import perplexity
from stages.core.training import recovery
from stages.core.training.loop import train

NEAR = torch.device("cpu")
ONCE = Schedule(**{**USUAL.model_dump(), "epochs": 1})
every_method = pytest.mark.parametrize("method", methods.METHODS)


@pytest.fixture
def far(monkeypatch):
    # Torch has both for real devices only.
    known, adam = torch.autocast, torch.optim.AdamW
    monkeypatch.setattr(torch, "autocast", lambda kind, **o: nullcontext() if kind == "meta" else known(kind, **o))
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **options: adam(*args, **{**options, "fused": False}))
    with second_device.watched() as device:
        yield device


def model_on(device, name, rank=None):
    model = tiny.model(name) if rank is None else tiny.shared(name, rank)[0]
    return model if device == NEAR else second_device.move(model)


def devices(model):
    return {parameter.device for parameter in model.parameters()}


def agree(found, wanted, **tolerance):
    torch.testing.assert_close(found.cpu(), wanted, **{"rtol": 1e-4, "atol": 1e-4, **tolerance})


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: a @ b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.nn.functional.linear(b, a),
        lambda a, b: b.index_select(0, torch.arange(2).to(a.device)),
        lambda a, b: a.add_(b),
    ],
)
def test_what_mixes_devices_is_seen(mix, far):
    a, b = torch.ones(2, 2, device=far), torch.ones(2, 2)
    with pytest.raises(second_device.Mixed):
        mix(a, b)
    mix(a, a.clone())
    mix(b, b.clone())


@every_method
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_every_method_stays_on_its_device(name, method, far):
    model, spec = tiny.model(name), methods.METHODS[method]
    known = tiny.calibration(model)
    wanted, _ = tiny.operate(model, tiny.GROUPS, known, spec)
    found, _ = tiny.operate(model_on(far, name), tiny.GROUPS, tiny.moved(known, far), spec)
    assert devices(found) == {far}
    agree(tiny.logits(found, tiny.ids().to(far)), tiny.logits(wanted))


def arms(device):
    """Each arm's perplexity, untrained and after the shortest recovery."""
    view, tokens = tiny.view(model_on(device, "gpt2")), tiny.ids(2, 32, 9).flatten()
    known = tiny.moved(tiny.calibration(tiny.model("gpt2")), device)

    def score(changed):
        assert devices(changed.model) == {device}
        return perplexity(changed.model, tokens, 32, 32, 2)

    def learn(changed, sharing, wanted):
        recipe = RECIPE.model_copy(update={"epochs": 1})
        recovery.recover(
            changed, sharing, view, tiny.TASK, ROWS[:4], ROWS.flatten()[:24], recipe, wanted, 0,
            autocast=nullcontext(), watch=iter,
        )  # fmt: skip
        return score(changed)

    rows = [
        *ablation.untrained(view, [1, 2], known, ["pre_activation"], 2, score),
        *ablation.recovered(view, [1, 2], known, ["pre_activation"], 2, learn),
    ]
    return {"/".join(row[key] for key in (*ablation.START, "recovery")): row["perplexity"] for row in rows}


def test_every_arm_of_the_ablation_stays_on_its_device(far, monkeypatch):
    """Every form and recovery, at one rate, with the neurons as they are and laid upon each other."""
    monkeypatch.setattr(ablation, "alignments", lambda sites: [("identity", "first"), ("cost", "centre")])
    monkeypatch.setattr(ablation, "RATES", {"": 1.0})
    assert arms(far) == pytest.approx(arms(NEAR), rel=1e-3)


@pytest.mark.parametrize("train_what", ["window", "deltas", "all"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_distillation_with_backward_stays_on_its_device(name, train_what, far):
    wanted = Recovery(
        train=train_what, frobenius=1e-4, around="start", warm_start=0.5,
        distill=Distill(logits=0.5, temperature=2.0, hidden=1.0),
    )  # fmt: skip
    found = {}
    for device in (NEAR, far):
        sharing = tiny.shared(name, 3)[1]
        model, teacher = model_on(device, name, 3), tiny.view(model_on(device, name))
        recovery.recover(
            tiny.view(model), sharing, teacher, tiny.TASK, ROWS, ROWS.flatten(), RECIPE, wanted, 0,
            autocast=nullcontext(), watch=iter,
        )  # fmt: skip
        assert devices(model) == {device}
        found[device] = tiny.logits(model, tiny.ids().to(device))
    agree(found[far], found[NEAR], rtol=1e-2, atol=1e-2)


def test_a_mixture_and_its_probes_stay_on_their_device(far):
    plan = {
        "0": {"in": {"form": "sparse", "kept": 400, "score": "input", "refit": True}},
        "2": {"in": {"form": "low_rank", "rank": 3}, "out": {"form": "sparse", "kept": 500, "score": "magnitude"}},
    }
    found = {}
    for device in (NEAR, far):
        view = tiny.view(model_on(device, "gpt2"))
        judge = probes.judge_by(tiny.TASK, ROWS.flatten(), device)
        changed, _ = making.mix(view, tiny.moved(tiny.calibration(tiny.model("gpt2")), device), plan)
        assert devices(changed.model) == {device}
        found[device] = judge.divergence(changed, judge.reference(view))
    assert found[far] == pytest.approx(found[NEAR], rel=1e-3) and found[far] > 0


def test_what_calibration_sees_stays_on_its_device(far):
    batches, found = [tiny.ids(4, 16, seed) for seed in range(2)], {}
    for device in (NEAR, far):
        view = tiny.view(model_on(device, "llama"))
        moments, rows = MomentStream(), []
        for seen in activations.stream(view, tuple(activations.SITES), batches):
            moments.update(seen["post_activation"][2])
            rows.append([seen["pre_activation"][layer] for layer in (1, 2)])
        (one, dead), (other, _) = (standardised(torch.cat(parts)) for parts in zip(*rows))
        known = tiny.moved(tiny.calibration(tiny.model("llama")), device)
        orders = alignment.by_cost(view.read_double, known.moments, [[0, 1, 2]], ["centre"])["centre"][0]
        turned = alignment.by_cost(view.read_double, known.moments, [[0, 1, 2]], ["centre"], signs=True)["centre"][0]
        found[device] = {
            "signed orders": torch.stack([torch.from_numpy(turned[layer]) for layer in (1, 2)]),
            "moments": moments.moments().second,
            "correlation": correlations(one, other),
            "dead": dead,
            "cost": alignment.Costs(view.read_double(1), known.moments(1)).of(view.read_double(0)),
            "orders": torch.stack([torch.from_numpy(orders[layer]) for layer in (1, 2)]),
            "influence": influence(view, [batch.to(device) for batch in batches]),
        }
    for what, wanted in found[NEAR].items():
        agree(found[far][what], wanted)


def test_what_is_measured_stays_on_its_device(far):
    rows, found = [tiny.ids(1, 4 + i, i)[0] for i in range(6)], {}
    for device in (NEAR, far):
        model = model_on(device, "gpt2")
        prefill, decode = timing.generation(model, tiny.ids(1, 6).to(device), 2)
        assert prefill > 0 and decode > 0
        figures = [
            perplexity(model, tiny.ids(3, 20).flatten(), 20, 10, 2),
            notes.padded_perplexity(model, [row.tolist() for row in rows], 8, 4),
        ]
        found[device] = torch.tensor(figures), classification.features(model, rows, 4)
    for one, other in zip(found[far], found[NEAR]):
        agree(one, other)


def test_heads_and_summaries_are_trained_on_their_device(far):
    rows, labels, found = [tiny.ids(1, 4 + i, i)[0] for i in range(6)], torch.arange(6) % 2, {}
    for device in (NEAR, far):
        model = model_on(device, "llama")
        recipe = HeadRecipe(**ONCE.model_dump(), train="all", learning_rate={"head": 1e-2, "model": 1e-4}, seeds=[0])
        states = classification.features(model, rows, 4)
        head = classification.fit(model, list(model.parameters()), rows, labels, states, recipe, 0)
        sure = classification.probabilities(head, classification.features(model, rows, 4))
        objective = summaries.summary_loss(model, [row.tolist() for row in rows], [[1, 2, 3]] * 6)
        history = train(model, 6, objective, [(list(model.parameters()), 1e-4)], ONCE, 0)
        assert devices(head) == devices(model) == {device}
        found[device] = sure, torch.tensor([step["loss"] for step in history.curve])
    for one, other in zip(found[far], found[NEAR]):
        agree(one, other, rtol=1e-2, atol=1e-2)


def test_beams_are_written_on_their_device(far):
    asked = [tiny.ids(1, length, length)[0].tolist() for length in (3, 5, 8)]
    spec = SimpleNamespace(batch_size=2, beams=2, no_repeat_ngram=2)
    found = [summaries.write(model_on(device, "llama"), asked, spec, 4, "continuation") for device in (NEAR, far)]
    assert found[0] == found[1]
