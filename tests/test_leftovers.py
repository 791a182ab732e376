"""A DVC that was killed while it wrote keeps no later one from going on, and loses no result."""

import shutil
import subprocess
import sys

import pytest
from closure import ROOT
from dvc.repo import Repo
from ruamel.yaml import YAML
from shrunk import STUDY, run, stages_run

from stages.core.running.leftovers import HEAD, mend, readable

LOCK = "".join((ROOT / "dvc.lock").read_text().splitlines(keepends=True)[:300])

GRAPH = """
stages:
  text: {cmd: echo words > text, outs: [text]}
  model: {cmd: cp text model, deps: [text], params: [rank], outs: [model]}
"""


def entries(lock):
    return {name: str(entry) for name, entry in YAML(typ="safe").load(lock)["stages"].items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leftovers") / "study"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "params.yaml").write_text("rank: 8")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "repro", "-q")
    return folder


@pytest.fixture
def repo(made, tmp_path):
    """A copy of its own for each test."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Repo(tmp_path)


def test_a_lock_cut_anywhere_is_one_that_dvc_goes_on_from(repo, tmp_path):
    lock = tmp_path / "dvc.lock"
    text, seen = lock.read_text(), set()
    for size in range(len(text)):
        lock.write_text(text[:size])
        mend(repo)
        kept = lock.read_text() if lock.exists() else ""
        assert text.startswith(kept) and text[:size].removeprefix(kept).count("cmd:") <= 1
        if kept not in seen:
            assert Repo(tmp_path).status() is not None
        seen.add(kept)
    assert len(seen) > 10


@pytest.mark.parametrize("text", [LOCK, f"{LOCK}<<<<<<< HEAD\n", f"<<<<<<< HEAD\n{LOCK}", f"a: b\n{LOCK}", "- a\n"])
def test_a_lock_that_is_whole_or_damaged_otherwise_is_left_alone(text, repo, tmp_path):
    (tmp_path / "dvc.lock").write_text(text)
    assert mend(repo) == [] and (tmp_path / "dvc.lock").read_text() == text


@pytest.mark.parametrize("text", ["", HEAD[:10], HEAD, f"{HEAD}  prepare:\n    cmd: python"])
def test_a_lock_without_a_whole_entry_goes(text, repo, tmp_path):
    (tmp_path / "dvc.lock").write_text(text)
    assert readable(text) or mend(repo) == ["dvc.lock was cut short: its last entry is taken out"]
    assert len(Repo(tmp_path).status()) == 2  # both stages are seen as new


def test_nothing_is_done_while_another_dvc_holds_the_lock(repo, tmp_path):
    table = tmp_path / ".dvc/tmp/rwlock"
    table.parent.mkdir(exist_ok=True)
    table.write_text("")
    hold = "import sys; from dvc.repo import Repo\nwith Repo(sys.argv[1]).lock: print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert mend(repo) == [] and table.exists()
        other.stdin.close()
    assert mend(repo) == ["rwlock of a DVC that was killed: removed, since it was cut short"] and not table.exists()


def test_a_study_goes_on_where_dvc_was_killed_while_it_wrote(clone, copy_of):
    folder = copy_of(clone)
    lock = (folder / "dvc.lock").read_text()
    at = lock.index("\n  finetune@softshare:")
    (folder / "dvc.lock").write_text(lock[: lock.index(" md5", at) + 2])
    (folder / ".dvc/tmp/rwlock").write_text('{"write": {')
    said = run(folder, *STUDY)
    assert stages_run(said) <= {"report"}, said  # the run cache holds none of a stage with folders of metrics
    assert entries((folder / "dvc.lock").read_text()).items() <= entries(lock).items()
    assert run(folder, "dvc", "status") == "Data and pipelines are up to date.\n"
