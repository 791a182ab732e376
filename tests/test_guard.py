"""A stage that DVC runs has no twin, and ends when its DVC ends, however that was."""

import os
import signal
import subprocess
import sys
import time

import pytest
from closure import ROOT

from stages.core.process.errors import UserError
from stages.core.process.guard import guarded

# A stage's process: it says that it holds the lock, and would then work for a minute.
STAGE = (
    "import time; from stages.core.process.guard import guarded\n"
    "with guarded(): print('at work', flush=True); time.sleep(60)"
)
# Something called dvc that runs a stage as DVC does, through a shell that stays between the two.
DVC = "import subprocess, sys; subprocess.run(sys.argv[1] + ' & echo $!; wait', shell=True)"


def environment(folder):
    return {**os.environ, "DVC_STAGE": "finetune@merged_4", "DVC_ROOT": str(folder)}


def stage(folder):
    """A stage that holds its lock."""
    command = [sys.executable, "-c", STAGE]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    return process


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_writer_is_refused_by_name(tmp_path):
    first = stage(tmp_path)
    try:
        with pytest.raises(UserError, match=f"finetune@merged_4 is already being run by process {first.pid}"):
            with guarded(environment(tmp_path), patience=0.3):
                pass
        with guarded(environment(tmp_path) | {"DVC_STAGE": "finetune@merged_6"}, patience=0):
            pass
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_however_the_first_ends_the_second_gets_the_lock(end, tmp_path):
    first = stage(tmp_path)
    first.send_signal(end)
    first.wait()
    stage(tmp_path).kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_ends_with_its_dvc(end, tmp_path):
    (tmp_path / "dvc").write_text(DVC)
    (tmp_path / "stage.py").write_text(STAGE)
    dvc = subprocess.Popen(
        [sys.executable, str(tmp_path / "dvc"), f"PYTHONPATH={ROOT} {sys.executable} {tmp_path}/stage.py"],
        env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(dvc.stdout.readline())
    assert dvc.stdout.readline() == "at work\n" and alive(child)
    dvc.send_signal(end)
    dvc.wait()
    until = time.monotonic() + 20
    while alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child)


def test_what_dvc_does_not_run_is_not_guarded(tmp_path):
    with guarded({}):
        assert not list(tmp_path.iterdir())
