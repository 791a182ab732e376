"""The hash of a folder is DVC's own, asked for once, and again once anything in the folder has changed."""

import os
import subprocess

import pytest
from dvc.dependency.base import Dependency
from dvc.repo import Repo

from stages.core.running import code_folders


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A repository with the stage `one`, which depends on `code`; its dependency; and how often DVC hashed it."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    Repo.init().close()
    (tmp_path / "code/deep").mkdir(parents=True)
    (tmp_path / "code/deep/a.py").write_text("a = 1\n")
    (tmp_path / "code/b.py").write_text("b = 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: 'true', deps: [code]}}\n")
    theirs, times = Dependency._get_hash_meta, []

    def counted(self):
        times.append(self.fs_path)
        return theirs(self)

    monkeypatch.setattr(Dependency, "_get_hash_meta", counted)
    code_folders.install()
    with Repo() as repo:
        (dep,) = repo.stage.load_one(name="one").deps
        yield dep, times, lambda: theirs(dep)[1]


def test_a_folder_is_hashed_once(asked):
    dep, times, true = asked
    assert [dep.get_hash() for _ in range(3)] == [true()] * 3 and len(times) == 1


def added():
    open("code/deep/c.py", "w").close()  # noqa: E704


def removed():
    os.remove("code/b.py")  # noqa: E704


def renamed():
    os.rename("code/b.py", "code/z.py")  # noqa: E704


def edited():
    """Of the same length."""
    with open("code/deep/a.py", "w") as file:
        file.write("a = 2\n")


def replaced():
    """By a file of the same size and time."""
    status = os.stat("code/b.py")
    with open("new", "w") as file:
        file.write("b = 7\n")
    os.utime("new", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace("new", "code/b.py")


@pytest.mark.parametrize("change", [added, removed, renamed, edited, replaced])
def test_a_change_is_seen(change, asked):
    dep, times, true = asked
    before = dep.get_hash()
    change()
    assert dep.get_hash() == true() != before and len(times) == 2
