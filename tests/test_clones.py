"""Two clones that share nothing but the repository make the same bytes, the times of a latency apart."""

import json
from pathlib import Path

import pytest
from dvc.repo import Repo
from shrunk import edit, keep, run, stages_run

STUDIED = ("original", "softshare")
# What a time stands in, and nothing else may differ.
TIMED = {*(f"metrics/latency/{name}.json" for name in STUDIED), "metrics/summary.json", "metrics/variants"} | {
    "metrics/points", "metrics/plots", "metrics/report.md", "metrics/report.html",
}  # fmt: skip
TIMED_FILES = {"metrics/points/speed.csv", "metrics/plots/perplexity_by_speed.png"}


@pytest.fixture(scope="module")
def first(clone, copy_of) -> Path:
    """A copy of the clone that studies fewer variants: only its report is made again."""
    folder = copy_of(clone)
    edit(folder, lambda values: keep(values, STUDIED))
    assert stages_run(run(folder, "dvc", "repro")) == {"report"}
    return folder


@pytest.fixture(scope="module")
def second(second_clone) -> Path:
    return second_clone(STUDIED)


def hashes(folder: Path) -> dict[str, str]:
    """What dvc.lock says of every output of today's stages."""
    outs = [out for stage in Repo(folder).index.stages for out in stage.outs]
    return {Path(out.fs_path).relative_to(folder).as_posix(): out.hash_info.value for out in outs}


def test_dvc_lock_has_the_same_hashes(first, second):
    ours, theirs = hashes(first), hashes(second)
    assert ours.keys() == theirs.keys() and len(ours) > 50 and all(ours.values())
    assert {path for path in ours if ours[path] != theirs[path]} <= TIMED


@pytest.mark.parametrize("folder", ["metrics/points", "metrics/plots", "artifacts/finetuned", "metrics/recovery"])
def test_files_are_the_same_where_no_time_is_shown(folder, first, second):
    files = [path.relative_to(second).as_posix() for path in (second / folder).rglob("*") if path.is_file()]
    compared = {path for path in files if path not in TIMED_FILES and not path.endswith(".gitignore")}
    assert compared and all((first / path).read_bytes() == (second / path).read_bytes() for path in compared)


def test_figures_are_the_same_but_for_times(first, second):
    def figures(folder):
        summary = json.loads((folder / "metrics/summary.json").read_text())
        assert all(row.pop("latency") for row in summary.values())
        return summary

    assert figures(first) == figures(second)
