"""Two clones that share nothing but the repository make the same bytes, the times of a latency apart.

In the second, DVC is killed ten times at random moments: what is there in the end is what a clean run makes.
"""

import json
import random
import subprocess
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
    for _ in range(10):
        study = subprocess.Popen(STUDY, cwd=folder, env=environment(), **SILENT)
        while study.poll() is None and len(at_work(folder)) < 5:  # the study, its server, DVC: no stage yet
            time.sleep(0.1)
        time.sleep(chance.uniform(0, 8))
        with suppress(psutil.NoSuchProcess):  # the study, or what it runs, may have ended by itself
            for dvc in psutil.Process(study.pid).children():
                dvc.kill()
        study.wait()
    run(folder, *STUDY)
    return folder


def at_work(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is this folder."""

    def is_here(process):
        try:
            return Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE
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
