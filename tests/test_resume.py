"""A killed training goes on to bitwise the same end."""

import subprocess
import sys

import pytest
import tiny
import torch
from closure import ROOT

from stages.core.settings.trainings import Schedule
from stages.core.tasks import language
from stages.core.training import loop, recovery, resuming

ROWS = (torch.arange(12)[None] * 7 + torch.arange(8)[:, None] * 3) % 31
RECIPE = Schedule(epochs=4, batch_size=2, accumulation=2, warmup=0.2, weight_decay=0.01, clip=1.0)
STEPS = 8


class Killed(BaseException):
    """What no one catches."""


def train(folder=None, kill_at=None, seed=3):
    """(parameters, course) of a training with dropout and looks at held-out text; killed in the middle of a step."""
    model = tiny.model("gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)
    learn, parts = recovery.end_to_end(tiny.TASK, model, ROWS, None, None, None), []

    def objective(batch):
        parts.append(batch)
        if kill_at is not None and len(parts) == 2 * kill_at:
            raise Killed
        return learn(batch)

    def validate():
        with torch.no_grad():
            return language.next_token_loss(model(ROWS).logits, ROWS).item()

    parameters = [p for p in model.parameters() if p.ndim == 2]
    course = loop.train(
        model, len(ROWS), objective, [(parameters, 3e-2)], RECIPE, seed, validate=validate, times=3,
        unfinished=resuming.Unfinished(folder, seconds=0, share=1e9) if folder else None,
    )  # fmt: skip
    return model, course, len(parts) // 2


def same(one, other):
    return one[1] == other[1] and tiny.same(tiny.state(one[0]), tiny.state(other[0]))


@pytest.fixture(scope="module")
def whole():
    return train()


def test_keeping_states_changes_nothing(whole, tmp_path):
    found = train(tmp_path)
    assert same(found, whole) and found[2] == STEPS
    assert len(list(tmp_path.iterdir())) == 2


def test_the_course_depends_on_chance(whole):
    assert not same(train(seed=4), whole)


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_a_killed_training_goes_on_to_the_same_bits(kill_at, whole, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, kill_at)
    torch.manual_seed(99)
    found = train(tmp_path)
    assert same(found, whole)
    assert found[2] == STEPS - kill_at + 1  # and not from the start


def test_killed_again_and_again(whole, tmp_path):
    for _ in range(STEPS - 1):
        with pytest.raises(Killed):
            train(tmp_path, 2)
    assert same(train(tmp_path), whole)


@pytest.mark.parametrize("left", [0, 7, 0.5, -1])
def test_a_state_cut_short_gives_way_to_the_one_before(left, whole, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, 6)
    newest = max(tmp_path.iterdir())
    bytes_ = newest.read_bytes()
    newest.write_bytes(bytes_[: round(left * len(bytes_)) if isinstance(left, float) else left])
    found = train(tmp_path)
    assert same(found, whole) and found[2] == STEPS - 4


def test_sigkill_in_another_process(whole, tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_resume
class Now(BaseException):
    def __init__(self): os.kill(os.getpid(), signal.SIGKILL)
test_resume.Killed = Now
test_resume.train(Path({str(tmp_path)!r}), 5)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -9
    found = train(tmp_path)
    assert same(found, whole) and found[2] == STEPS - 4


def test_a_place_is_made_of_facts_and_inputs(tmp_path):
    inputs = [tmp_path / "model", tmp_path / "text"]
    inputs[0].mkdir()
    (inputs[0] / "weights").write_bytes(b"1")
    inputs[1].write_bytes(b"2")
    found = []
    for facts, content in [({"rate": 1}, b"2"), ({"rate": 1}, b"2"), ({"rate": 2}, b"2"), ({"rate": 1}, b"3")]:
        inputs[1].write_bytes(content)
        found.append(resuming.state_folder(tmp_path / "unfinished", facts, inputs))
        found[-1].mkdir(parents=True, exist_ok=True)
        assert list((tmp_path / "unfinished").iterdir()) == [found[-1]]
    assert found[0] == found[1] and len(set(found)) == 3


def test_keeping_is_rare_enough_to_be_cheap(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
    unfinished = resuming.Unfinished(tmp_path, seconds=30)
    monkeypatch.setattr(resuming, "write_tensors", lambda *a: now.__setitem__(0, now[0] + 5))
    now[0] = 29.0
    assert not unfinished.due()
    now[0] = 30.0
    assert unfinished.due()
    unfinished.keep(1, {}, {})  # takes five seconds
    now[0] += 249.0
    assert not unfinished.due()
    now[0] += 1.0
    assert unfinished.due()
