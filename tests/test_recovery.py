"""Recovery: which parameters move, towards what, and that the best state on held-out text is what is kept."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import tiny
import torch

from stages.core.architecture.depth import keep_layers
from stages.core.forms import structure
from stages.core.forms.structure import Sharing
from stages.core.settings.recoveries import Distill, Recovery
from stages.core.settings.surgeries import LowRank, Prune
from stages.core.settings.trainings import Finetune, Schedule
from stages.core.shrinking import operations
from stages.core.tasks.language import Language
from stages.core.training import answers, loop, recovery
from stages.core.training.answers import Answers

ROWS = (torch.arange(12)[None] * 7 + torch.arange(8)[:, None] * 3) % 31
USUAL = Schedule(epochs=3, batch_size=4, warmup=0.0, weight_decay=0.0, clip=1.0)
RECIPE = Finetune(
    **USUAL.model_dump(),
    max_tokens=96,
    sequence_length=12,
    learning_rate={"all": 4e-2, "deltas": 3e-2, "base": 2e-2, "norms": 1e-2},
    validation={"times": 1, "max_tokens": 96},
    seeds=[0],
)


def run(model, objective, rates, recipe=USUAL, **options):
    return loop.train(model, len(ROWS), objective, rates, recipe, 0, **options)


@pytest.mark.parametrize("rank", [0, 3])
@tiny.every_family
def test_the_window_s_parts_are_all_of_the_window_and_nothing_else(name, rank):
    model, sharing = tiny.shared(name, rank)
    parts = recovery.parts(tiny.view(model), [[0, 1, 2]], "window")
    chosen = [parameter for group in parts.values() for parameter in group]
    assert len({id(p) for p in chosen}) == len(chosen)
    names = {id(p): key for key, p in model.named_parameters()}
    before = tiny.state(model)
    run(model, recovery.end_to_end(tiny.TASK, model, ROWS, None, None, None), [(p, 1e-2) for p in parts.values() if p])
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {names[id(p)] for p in chosen if p.numel()}
    assert len(parts["base"]) == len(tiny.family(model).matrices) and bool(parts["deltas"]) == bool(rank)


@pytest.mark.parametrize("around", ["zero", "start"])
def test_the_penalty_is_the_squared_norm_from_where_it_is_anchored(around):
    model, _ = tiny.shared("gpt2", 3)
    starts = [delta.delta().detach().clone() for delta in structure.deltas(model)]
    penalty = recovery.frobenius(model, around)
    if around == "start":
        assert penalty().abs() < 1e-4
    with torch.no_grad():
        for delta in structure.deltas(model):
            delta.A.add_(torch.randn(delta.A.shape, generator=torch.Generator().manual_seed(1)))
    anchor = starts if around == "start" else [0.0] * len(starts)
    wanted = sum((d.delta() - a).square().sum() for d, a in zip(structure.deltas(model), anchor))
    torch.testing.assert_close(penalty(), wanted, rtol=1e-4, atol=1e-3)


def test_a_variant_s_rate_multiplies_every_learning_rate_in_both_phases(monkeypatch):
    given = []
    monkeypatch.setattr(recovery, "train", lambda _, examples, objective, rates, *rest, **options: given.append(rates))
    model, sharing = tiny.shared("gpt2", 3)
    wanted = Recovery(train="window", frobenius=0.0, warm_start=0.5, rate=0.1)
    recovery.recover(
        tiny.view(model), sharing, tiny.view(model), tiny.TASK, ROWS, ROWS.flatten(), RECIPE, wanted, 0,
        autocast=nullcontext(), watch=iter,
    )  # fmt: skip
    early, late = ([rate for _, rate in rates] for rates in given)
    assert early == pytest.approx([3e-3, 2e-3]) and late == pytest.approx([3e-3, 2e-3, 1e-3])


class Small(Language):
    """Another task than next tokens: small logits."""

    def loss(self, outputs, examples):
        return outputs.logits.square().mean()

    def score(self, model, held_out, watch=iter):
        with torch.no_grad():
            return self.loss(self.outputs(model, held_out.view(-1, self.context)), held_out).item()


def test_what_is_learnt_and_scored_is_the_task_s():
    model, sharing = tiny.shared("gpt2", 3)
    task, spec, expected = Small(12, 12), Recovery(train="all", frobenius=0.0), []
    for _ in range(2):
        expected.append(task.score(model, ROWS.flatten()))
        if len(expected) == 1:
            history = recovery.recover(
                tiny.view(model), sharing, None, task, ROWS, ROWS.flatten(), RECIPE, spec, 0,
                autocast=nullcontext(), watch=iter,
            )  # fmt: skip
    assert [at["value"] for at in history.validation] == expected and expected[1] < 0.5 * expected[0]


@tiny.every_family
def test_an_untouched_model_is_at_no_distance_from_its_teacher(name):
    model, batch = tiny.model(name), torch.arange(4)
    ce, plain = recovery.end_to_end(
        tiny.TASK, model, ROWS, model, Distill(logits=1.0, temperature=2.0, hidden=1.0), None
    )(batch)
    assert plain.abs() < 1e-5 < ce
    error, _ = recovery.layer_by_layer(tiny.TASK, tiny.view(model), ROWS, tiny.view(tiny.model(name)), [1, 2])(batch)
    assert error < 1e-10


@tiny.every_family
def test_each_way_to_learn_brings_the_model_nearer_to_its_teacher(name):
    teacher = tiny.model(name)
    for objective in ("logits", "hidden", "layers"):
        model, sharing = tiny.shared(name, 3)
        if objective == "layers":
            wanted = recovery.layer_by_layer(tiny.TASK, tiny.view(model), ROWS, tiny.view(teacher), [0, 1, 2, 3, 4])
        else:
            distill = Distill(logits=1.0, hidden=float(objective == "hidden"))
            wanted = recovery.end_to_end(tiny.TASK, model, ROWS, teacher, distill, None)
        with torch.no_grad():
            before = wanted(torch.arange(8))[1]
        parts = recovery.parts(tiny.view(model), sharing.groups, "window")
        rates = [(parts[key], 3e-3) for key in ("deltas", "base")]
        run(model, wanted, rates, Schedule(epochs=15, batch_size=4, warmup=0.0, weight_decay=0.0, clip=1.0))
        with torch.no_grad():
            assert wanted(torch.arange(8))[1] < 0.9 * before


def test_divergence_is_kullback_s_and_zero_for_equals():
    p, q = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 7)
    found = recovery.divergence(q, p, 2.0)
    soft = torch.softmax(p / 2, -1)
    wanted = 4 * (soft * (soft.log() - torch.log_softmax(q / 2, -1))).sum(-1).mean()
    torch.testing.assert_close(found, wanted)
    assert recovery.divergence(p, p, 3.0).abs() < 1e-6


def test_the_best_state_on_validation_is_kept_and_it_may_be_the_start():
    model, _ = tiny.shared("gpt2", 3)
    before = tiny.state(model)
    values = iter([1.0, 3.0, 2.0, 4.0])
    objective = recovery.end_to_end(tiny.TASK, model, ROWS, None, None, None)
    course = run(model, objective, [(list(model.parameters()), 1e-2)], validate=lambda: next(values), times=3)
    assert [look["value"] for look in course.validation] == [1.0, 3.0, 2.0, 4.0]
    assert [look["examples"] for look in course.validation] == [0, 8, 16, 24]
    assert tiny.same(tiny.state(model), before)


def test_a_state_in_the_middle_is_kept_bit_for_bit():
    model, _ = tiny.shared("gpt2", 3)
    values, states = iter([5.0, 3.0, 1.0, 4.0]), []

    def validate():
        states.append(tiny.state(model))
        return next(values)

    objective = recovery.end_to_end(tiny.TASK, model, ROWS, None, None, None)
    run(model, objective, [(list(model.parameters()), 1e-2)], validate=validate, times=3)
    assert tiny.same(tiny.state(model), states[2]) and not tiny.same(states[2], states[3])


def test_accumulation_takes_the_same_steps_as_a_larger_batch():
    states = []
    for size, accumulation in ((4, 1), (2, 2)):
        model, _ = tiny.shared("llama", 3)
        recipe = Schedule(
            epochs=2, batch_size=size, accumulation=accumulation, warmup=0.0, weight_decay=0.0, clip=100.0
        )
        run(
            model,
            recovery.end_to_end(tiny.TASK, model, ROWS, None, None, None),
            [(list(model.parameters()), 1e-3)],
            recipe,
        )
        states.append(tiny.state(model))
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind, end", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_schedules_rise_and_end_where_they_should(kind, end):
    recipe = Schedule(epochs=1, batch_size=1, schedule=kind, warmup=0.1, weight_decay=0.0, clip=1.0)
    rates = [loop.rate(recipe, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(end) and all(a >= b for a, b in zip(rates[10:], rates[11:]))


DROPOUTS = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    **dict.fromkeys(("llama", "mistral", "qwen2"), {"attention_dropout": 0.1}),
}


@tiny.every_family
def test_a_pupil_that_is_its_teacher_has_nothing_to_learn(name):
    """Dropout of the config's 0.1 alone would make a distillation loss (for GPT-2 a fifth of the states' size)."""
    pupil, teacher = (tiny.model(name, **DROPOUTS[name]) for _ in range(2))
    distil = Distill(logits=1.0, hidden=20.0)
    objective = recovery.end_to_end(tiny.TASK, pupil.train(), ROWS, teacher, distil, None)
    assert objective(torch.arange(4))[1] > 1e-3
    recovery.set_dropout(pupil, 0.0)
    assert objective(torch.arange(4))[1] == 0
    recovery.set_dropout(pupil, 0.1)
    assert objective(torch.arange(4))[1] > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_recovery_drops_out_what_its_recipe_says(dropout, monkeypatch):
    pupil, teacher = (tiny.model("gpt2", **DROPOUTS["gpt2"]) for _ in range(2))
    losses = []

    def watched(model, examples, objective, *args, **options):
        losses.append(objective(torch.arange(4))[1].item())
        return loop.train(model, examples, objective, *args, **options)

    monkeypatch.setattr(recovery, "train", watched)
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    wanted = Recovery(train="all", frobenius=0.0, distill=Distill(logits=1.0, hidden=20.0))
    options = {"autocast": nullcontext(), "watch": iter}
    views = tiny.view(pupil.train()), structure.Sharing(), tiny.view(teacher)
    recovery.recover(*views, tiny.TASK, ROWS, ROWS.flatten(), recipe, wanted, 0, **options)
    assert (losses[0] == 0) == (dropout == 0) and pupil.config.resid_pdrop == 0.1


@tiny.every_family
@pytest.mark.parametrize("what", ["deltas", "window"])
def test_below_the_first_window_nothing_is_kept_for_a_backward_pass(name, what):
    built = tiny.model(name)
    shared, _ = tiny.operate(built, [[2, 3]], tiny.calibration(built), tiny.share(4))
    seen = []

    def objective(batch):
        outputs = shared(tiny.ids(len(batch)), use_cache=False, output_hidden_states=True)
        seen.append([states.requires_grad for states in outputs.hidden_states])
        loss = outputs.logits.square().mean()
        return loss, loss

    rates = [(chosen, 1e-4) for chosen in recovery.parts(tiny.view(shared), [[2, 3]], what).values() if chosen]
    run(shared, objective, rates)
    # The embeddings, then each block's output.
    assert seen[0] == [False, False, False, True, True, True]


def test_a_kept_layer_learns_what_the_next_kept_one_reads():
    states = [torch.tensor(float(layer)) for layer in range(6)]  # what layers 0 to 4 read, and the end
    assert [int(state) for state in recovery.of_kept(states, [0, 2, 3])] == [0, 2, 3, 5]
    assert [int(state) for state in recovery.of_kept(states, None)] == list(range(6))
    assert recovery.of_kept(states, list(range(5))) == states


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_hidden_states_of_a_model_with_fewer_layers_are_compared_with_those_of_kept_ones(name):
    teacher, kept = tiny.view(tiny.model(name)), [0, 3, 4]
    student, task = keep_layers(teacher, kept), Language(8, 8)
    rows = torch.arange(32).view(4, 8) % tiny.VOCABULARY
    objective = recovery.end_to_end(
        task, student.model, rows, teacher.model, Distill(logits=0.0, hidden=3.0), None, kept
    )
    with torch.no_grad():
        loss, minimised = objective(torch.arange(4))
        found, wanted = (task.outputs(view.model, rows, True).hidden_states for view in (student, teacher))
    pairs = [(found[1], wanted[3]), (found[2], wanted[4]), (found[3], wanted[5])]
    errors = torch.stack([recovery.relative_error(*pair) for pair in pairs])
    torch.testing.assert_close(minimised - loss, 3.0 * errors.mean())
    assert errors.min() > 0


def test_a_warm_start_leaves_an_example_to_train_end_to_end():
    model, sharing = tiny.shared("gpt2", 3)
    spec = Recovery(train="window", warm_start=0.99, distill={"logits": 0.5})
    history = recovery.recover(
        tiny.view(model), sharing, tiny.view(tiny.model("gpt2")), tiny.TASK, ROWS, ROWS.flatten(), RECIPE, spec, 0,
        autocast=nullcontext(), watch=iter,
    )  # fmt: skip
    warm = RECIPE.epochs * (len(ROWS) - 1)
    assert history.curve[-1]["examples"] == warm + RECIPE.epochs
    assert [at["examples"] for at in history.validation][:2] == [0, warm]


def test_a_warm_start_that_does_harm_is_given_up_with_what_came_before_it():
    class Worse(type(tiny.TASK)):
        """Every look is worse than the one before."""

        def score(self, model, held_out, watch=iter):
            looks.append(len(looks) + 1.0)
            return looks[-1]

    looks: list[float] = []
    (model, sharing), before = tiny.shared("gpt2", 3), tiny.shared("gpt2", 3)[0]
    spec = Recovery(train="window", warm_start=0.5, distill={"logits": 0.5})
    history = recovery.recover(
        tiny.view(model), sharing, tiny.view(tiny.model("gpt2")), Worse(12, 12), ROWS, ROWS.flatten(), RECIPE, spec, 0,
        autocast=nullcontext(), watch=iter,
    )  # fmt: skip
    assert [at["value"] for at in history.validation] == looks and len(looks) > 2
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("form", ["dense", "factored", "pruned", "shared"])
def test_every_validation_is_of_the_weights_of_its_step(form, monkeypatch):
    """Pruned matrices are laid out once for all evaluations without a step between them."""
    model, sharing = tiny.shared("gpt2", 2) if form == "shared" else (tiny.model("gpt2"), Sharing())
    view = tiny.view(model)
    if form in ("factored", "pruned"):
        method = {"factored": LowRank(method="low_rank", fit="svd", ranks="equal", target_parameters=0.8),
                  "pruned": Prune(method="prune", target_parameters=0.8)}[form]  # fmt: skip
        view, sharing = operations.operate(view, [], tiny.calibration(model), method)
    told, truth = [], []

    class Watched(type(tiny.TASK)):
        def score(self, model, held_out, watch=iter):
            told.append(tiny.TASK.score(model, held_out))
            truth.append(tiny.TASK.score(copy.deepcopy(model), held_out))
            return told[-1]

    recipe = RECIPE.model_copy(update={"validation": RECIPE.validation.model_copy(update={"times": 4})})
    recovery.recover(
        view, sharing, None, Watched(12, 12, 4), ROWS, ROWS.flatten(), recipe, Recovery(), 0,
        autocast=nullcontext(), watch=iter,
    )  # fmt: skip
    assert told == truth and len(set(truth)) > 2


@pytest.fixture
def teacher_files(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/weights").write_bytes(b"1")
    return tmp_path / "teacher"


def distilled(kept, teacher_files, facts=1, seed=0):
    """(state, times that the teacher was asked) of a training with answers in the folder `kept`, or without."""
    model, sharing = tiny.shared("gpt2", 1)
    teacher, asked = tiny.view(tiny.model("gpt2")), []
    teacher.model.register_forward_pre_hook(lambda *_: asked.append(1))
    spec = Recovery(train="all", frobenius=0.0, distill={"logits": 0.5, "hidden": 1.0})
    recovery.recover(
        tiny.view(model), sharing, teacher, tiny.TASK, ROWS, ROWS.flatten(), RECIPE, spec, seed,
        autocast=nullcontext(), watch=iter, answers=kept and Answers(kept, facts, teacher_files),
    )  # fmt: skip
    return tiny.state(model), len(asked)


def test_kept_answers_change_no_bit_and_spare_the_teacher(tmp_path, teacher_files):
    plain, asked = distilled(None, teacher_files)
    kept = tmp_path / "kept"
    for expected in (asked, 0):
        state, times = distilled(kept, teacher_files)
        assert times == expected and tiny.same(state, plain)
    assert distilled(kept, teacher_files, facts=2)[1] == asked  # another machine
    assert distilled(kept, teacher_files, seed=1)[1] == asked  # other batches
    (teacher_files / "weights").write_bytes(b"2")
    assert distilled(kept, teacher_files)[1] == asked  # another teacher


def test_damaged_answers_are_asked_for_again(tmp_path, teacher_files):
    plain, asked = distilled(tmp_path / "kept", teacher_files)
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    state, times = distilled(tmp_path / "kept", teacher_files)
    assert times == asked and tiny.same(state, plain)


def test_answers_that_do_not_fit_are_not_kept(tmp_path, teacher_files, monkeypatch):
    monkeypatch.setattr(answers, "MOST", 1000)
    distilled(tmp_path / "kept", teacher_files)
    assert not list(tmp_path.glob("kept/*"))


def test_a_folder_keeps_no_more_than_it_may_whatever_the_seeds(tmp_path, teacher_files, monkeypatch):
    distilled(tmp_path / "all", teacher_files)
    sizes = [path.stat().st_size for path in tmp_path.glob("all/*")]
    monkeypatch.setattr(answers, "MOST", sum(sizes[:2]))
    for seed in (0, 0, 1):
        distilled(tmp_path / "kept", teacher_files, seed=seed)
        assert len(list(tmp_path.glob("kept/*"))) == 2 < len(sizes)


def test_logits_are_read_without_the_hidden_states_beside_them(tmp_path, teacher_files):
    kept = Answers(tmp_path / "kept", 1, teacher_files)
    logits, states = torch.ones(3, 2), [torch.zeros(2), torch.ones(2)]
    times = []

    def ask():
        times.append(1)
        return SimpleNamespace(logits=logits, hidden_states=states)

    for hidden, asked in [(False, 1), (True, 2), (False, 2), (True, 2)]:
        found = kept.to(ROWS, hidden, ask)
        assert torch.equal(found.logits, logits) and len(times) == asked
        assert not hidden or all(torch.equal(*pair) for pair in zip(found.hidden_states, states, strict=True))


def test_answers_of_another_layout_are_not_kept(tmp_path, teacher_files):
    """Summed in another order, they would have other last bits for who reads them again."""
    asked = Answers(tmp_path / "kept", 1, teacher_files)
    answer = SimpleNamespace(logits=torch.ones(3, 2).T, hidden_states=None)
    assert asked.to(ROWS, False, lambda: answer) is answer
    assert not list(tmp_path.glob("kept/*"))
