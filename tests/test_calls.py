"""What DVC and its stages say goes to logs; the screen learns what runs, what is done and why something failed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from closure import ROOT
from shrunk import run

from stages.core.running.board import Board
from stages.core.running.calls import Calls, reason
from stages.core.running.graph import Plan

# Three stages: one says much, one reports its progress, one follows both. The second fails where `fault` is not empty.
GRAPH = """
stages:
  first:
    cmd: echo chatter; echo Loading weights >&2; echo 1 > one.txt
    outs: [one.txt]
  second:
    cmd: >-
      {python} stage.py
    deps: [stage.py, one.txt]
    outs: [two.txt]
  third:
    cmd: echo done; cat two.txt > three.txt
    deps: [two.txt]
    outs: [three.txt]
"""
STAGE = """
import os, sys, time
sys.path.insert(0, {root!r})
from stages.core.process.guard import guarded
from stages.core.process.progress import progress
with guarded():
    for item in progress(range(3), "second"):
        print("item", item, flush=True)
    {body}
    open("two.txt", "w").write("2")
"""


class Noted:
    """A screen that remembers."""

    def __init__(self):
        self.ended = {}

    def stage(self, stage, how):
        self.ended[stage] = how


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A repository of git and DVC in which nothing is."""
    folder = tmp_path_factory.mktemp("empty")
    run(folder, "git", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "init", "-q")
    run(folder, sys.executable, "-m", "dvc", "config", "core.analytics", "false")
    return folder


@pytest.fixture
def project(empty, tmp_path, monkeypatch):
    """Makes a project of three stages whose second does `body`, and is the current folder then."""

    def make(body="pass", folder=tmp_path / "a project"):
        shutil.copytree(empty, folder)
        (folder / "dvc.yaml").write_text(GRAPH.format(python=f"'{sys.executable}'"))
        (folder / "stage.py").write_text(STAGE.format(root=str(ROOT), body=body))
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return folder

    return make


def calls_in(folder: Path) -> Calls:
    plan = Plan(["first", "second", "third"], {}, [])
    return Calls(Board(plan, plan.stages()), Noted(), folder / "logs", folder)


def test_every_stage_has_its_log_and_the_screen_its_time(project):
    folder = project()
    calls = calls_in(folder)
    assert calls.run("all", "repro") is None
    log = (folder / "logs/first.log").read_text()
    assert "chatter\n" in log and "Loading weights\n" in log and "item" not in log
    assert "item 2\n" in (folder / "logs/second.log").read_text()
    assert "chatter" not in (folder / "logs/dvc.log").read_text()
    assert list(calls.screen.ended) == ["first", "second", "third"]
    assert all(how.endswith(" s") for how in calls.screen.ended.values())
    assert calls.board.counts() == (3, 3) and not calls.board.at_work()
    report = json.loads((folder / "all.json").read_text())
    assert report == {"stage": "second", "what": "second", "done": 3, "total": 3, "note": ""}
    # Again: nothing runs, nor where DVC finds the outputs in its run cache.
    calls = calls_in(folder)
    assert calls.run("all", "repro") is None
    assert calls.board.counts() == (3, 3) and not calls.board.ran and not calls.screen.ended
    (folder / "dvc.lock").unlink()
    calls = calls_in(folder)
    assert calls.run("all", "repro") is None
    assert calls.board.restored == {"second", "third"} and set(calls.board.ran) == {"first"}  # it reads nothing
    assert calls.screen.ended["third"] == "from the run cache"


def test_a_stage_that_gives_what_its_lock_says_has_run(project):
    """As in a clone without a cache: DVC says nothing at its end, since its lock file stays as it is."""
    folder = project()
    assert calls_in(folder).run("all", "repro") is None
    shutil.rmtree(folder / ".dvc/cache")
    for name in ("one", "two", "three"):
        (folder / f"{name}.txt").unlink()
    calls = calls_in(folder)
    for stage in ("first", "second"):  # the third gives what the second does, which is in the cache by then
        assert calls.run(stage, "repro", "--single-item", stage) is None
        assert list(calls.board.ran)[-1] == stage == list(calls.screen.ended)[-1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('error: rank = 0\\n       more'); sys.exit(1)", ["error: rank = 0", "       more"]),
        ("raise ValueError('no such thing')", ["ValueError: no such thing"]),
        ("os.kill(os.getpid(), 9)", ["exited with (-9|137)"]),  # 137 where the shell does not replace itself
        ("sys.exit(0)", ["output 'two.txt' does not exist"]),
    ],
)  # fmt: skip
def test_a_failure_names_stage_reason_and_log(body, said, project):
    folder = project(body)
    calls = calls_in(folder)
    failure = calls.run("all", "repro")
    assert failure.stage == "second" and failure.log == folder / "logs/second.log"
    if said[0].startswith(("exited", "output")):
        assert failure.reason[-1].startswith("ERROR: failed to reproduce 'second'")
        assert re.search(said[0], failure.reason[-1])
        assert "python" not in failure.reason[-1]
    else:
        assert failure.reason == said
    assert "item 2" in failure.log.read_text()
    assert str(failure).startswith("stage second failed:\n  ") and str(failure).endswith(f"log: {failure.log}")
    assert calls.board.counts() == (1, 3)


def test_a_failure_of_dvc_itself_is_shown_by_its_own_words(project):
    folder = project()
    (folder / "dvc.yaml").write_text("stages: 1\n")
    failure = calls_in(folder).run("all", "repro")
    assert failure.stage is None and "dvc.yaml' validation failed" in "".join(failure.reason)
    assert failure.log.read_text()


def test_words_that_nobody_knows_break_nothing():
    assert reason(["\x00", "  ", "what is this"], 3) == ["\x00", "what is this"]
    assert reason([], 3) == ["exit status 3"]
    assert reason(["ERROR: a", "b"], 255) == ["ERROR: a", "b"]


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_calls import calls_in
calls_in(Path.cwd()).run("all", "repro")
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_dvc_and_its_stage_end_with_a_killed_driver(end, project):
    folder = project("print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(60)")
    code = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    driver = subprocess.Popen([sys.executable, "-c", code])
    stage = int(waited(lambda: (folder / "pid").is_file() and (folder / "pid").read_text()))
    children = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    assert psutil.Process(stage) in children
    driver.send_signal(end)
    driver.wait()
    waited(lambda: not [child for child in children if child.is_running() and child.status() != "zombie"])


def test_a_stage_whose_dvc_is_gone_before_it_begins_does_not_begin(project):
    folder = project()
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, "DVC_STAGE": "second", "DVC_ROOT": str(folder), "SHARED_FFN_DVC": str(gone.pid)}
    assert subprocess.run([sys.executable, "stage.py"], env=environment, capture_output=True).returncode == 1
    assert not (folder / "two.txt").exists()


def test_stop_ends_a_call_and_lets_no_other_begin(project):
    folder = project("time.sleep(60)")
    calls, found = calls_in(folder), []
    thread = threading.Thread(target=lambda: found.append(calls.run("all", "repro")))
    thread.start()
    waited(lambda: [work for work in calls.board.at_work() if work.stage == "second"])
    calls.stop(patience=0)
    thread.join(20)
    assert found == [None] and not calls.children  # asked for, so no failure
    assert calls.run("more", "repro") is None and not calls.board.at_work()


def test_ctrl_c_is_no_traceback(tmp_path):
    (tmp_path / "work.py").write_text(
        "import time\nfrom stages.core.process import command\n"
        "def main():\n    print('at work', flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    command.entry(main)\n"
    )
    work = subprocess.Popen(
        [sys.executable, "work.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert work.stdout.readline() == "at work\n"
    work.send_signal(signal.SIGINT)
    assert work.communicate()[1] == "interrupted\n" and work.returncode == 130


def waited(condition, seconds=40):
    """What a condition gives as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found
