"""Two clones that share nothing but the repository make the same bytes, the times of a latency apart.

In the second, DVC is killed ten times at random moments: what is there in the end is what a clean run makes.
"""

import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo
from shrunk import STUDY, edit, environment, keep, new_clone, run, stages_run

STUDIED = ("original", "softshare")
# What a time stands in, and nothing else may differ.
TIMED = {*(f"metrics/latency/{name}.json" for name in STUDIED), "metrics/summary.json", "metrics/variants"} | {
    "metrics/points", "metrics/plots", "metrics/report.md", "metrics/report.html",
}  # fmt: skip
TIMED_FILES = {"metrics/points/speed.csv", "metrics/plots/perplexity_by_speed.png"}
# Studies in the current folder, one for each line of standard input, whose process it names. Each is all that
# `make repro` is but for the server of stages, which imports for seconds: they have one together.
STUDIES = """
import os, sys
from contextlib import nullcontext
import dvc.repo
from stages.commands import repro
from stages.core.running import server

with server.serving() as variables:
    server.serving = lambda **options: nullcontext(variables)
    for _ in sys.stdin:
        study = os.fork()
        if not study:
            os.dup2(2, 1)
            try:
                repro.main("1")
            finally:
                os._exit(1)
        print(study, flush=True)
        os.waitpid(study, 0)
"""
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture(scope="module")
def first(request, copy_of) -> Path:
    """A copy of the clone that studies fewer variants: only its report is made again.

    Asked for only now, so that the second runs while another process makes the clone.
    """
    folder = copy_of(request.getfixturevalue("clone"))
    edit(folder, lambda values: keep(values, STUDIED))
    assert stages_run(run(folder, "dvc", "repro")) == {"report"}
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Path:
    folder = new_clone(tmp_path_factory.mktemp("clone") / "study", STUDIED)
    (folder / "dvc.lock").unlink()
    chance = random.Random(5)
    for _ in range(2):  # with their servers
        kill_what_runs(psutil.Popen(STUDY, cwd=folder, env=environment(), **SILENT), folder, chance)
    command, pipes = [sys.executable, "-c", STUDIES], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment(), text=True, **{**SILENT, **pipes}) as studies:
        for _ in range(8):
            print(file=studies.stdin, flush=True)
            kill_what_runs(psutil.Process(int(studies.stdout.readline())), folder, chance)
    run(folder, *STUDY)
    return folder


def kill_what_runs(study: psutil.Process, folder: Path, chance: random.Random) -> None:
    """Kill the children of a study, DVC among them, up to some seconds after its first stage has begun."""
    with suppress(psutil.NoSuchProcess):  # the study, or what it runs, may have ended by itself
        while study.status() != psutil.STATUS_ZOMBIE and not at_work(folder, "stages.run"):
            time.sleep(0.1)
        time.sleep(chance.uniform(0, 3))
        for child in study.children():
            child.kill()
    study.wait()


def at_work(folder: Path, module: str = "") -> list[psutil.Process]:
    """The processes whose working directory is this folder; those that run a module, where one is named."""

    def is_here(process):
        try:
            here = Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE
            return here and (not module or module in process.cmdline())
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if is_here(process)]


def hashes(folder: Path) -> dict[str, str]:
    """What dvc.lock says of every output of today's stages."""
    outs = [out for stage in Repo(folder).index.stages for out in stage.outs]
    return {Path(out.fs_path).relative_to(folder).as_posix(): out.hash_info.value for out in outs}


def test_dvc_lock_has_the_same_hashes(second, first):
    ours, theirs = hashes(first), hashes(second)
    assert ours.keys() == theirs.keys() and len(ours) > 50 and all(ours.values())
    assert {path for path in ours if ours[path] != theirs[path]} <= TIMED


@pytest.mark.parametrize("folder", ["metrics/points", "metrics/plots", "artifacts/finetuned", "metrics/recovery"])
def test_files_are_the_same_where_no_time_is_shown(folder, second, first):
    files = [path.relative_to(second).as_posix() for path in (second / folder).rglob("*") if path.is_file()]
    compared = {path for path in files if path not in TIMED_FILES and not path.endswith(".gitignore")}
    assert compared and all((first / path).read_bytes() == (second / path).read_bytes() for path in compared)


def test_figures_are_the_same_but_for_times(second, first):
    def figures(folder):
        summary = json.loads((folder / "metrics/summary.json").read_text())
        assert all(row.pop("latency") for row in summary.values())
        return summary

    assert figures(first) == figures(second)


def test_the_killed_left_nothing_behind(second):
    assert not at_work(second)
    assert not [path for path in second.rglob(".*.part") if ".dvc" not in path.parts]
    assert not list(second.glob("artifacts/unfinished/*"))
