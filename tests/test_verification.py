"""`make verify` finds what DVC takes for up to date, names it, and prints commands that mend it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from closure import ROOT
from dvc.cli import main as dvc
from dvc.repo import Repo
from shrunk import commit, run

from stages.commands import verify as command
from stages.commands.verify import commands
from stages.core.running.verification import Finding, verify

GRAPH = """
stages:
  given:
    frozen: true
    cmd: exit 1
    outs: [given.txt: {cache: false}]
  text:
    cmd: cp source.txt text.txt
    deps: [source.txt]
    outs: [text.txt]
  model:
    cmd: mkdir -p model/deep && cp text.txt model/deep/weights && echo words > model/tokens
    deps: [text.txt, given.txt]
    outs: [model]
  score:
    cmd: wc -c < model/tokens > score.txt && cp score.txt table.txt
    deps: [model]
    outs: [score.txt, table.txt: {cache: false}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verification") / "study"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "source.txt").write_text("a text that was there first")
    (folder / "given.txt").write_text("a model that came with the project")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "config", "core.analytics", "false")
    run(folder, "dvc", "commit", "-q", "-f", "given")
    run(folder, "dvc", "repro")
    commit(folder, "run")
    return folder


@pytest.fixture
def study(made, tmp_path, monkeypatch) -> Path:
    """A copy of its own for each test, as the current folder; DVC has seen every file of it."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "study", symlinks=True))
    assert Repo().status() == {}
    return Path()


def flip(path: Path) -> None:
    """What a bad disk does: another bit, the same size, time and mode."""
    before, damaged = path.stat(), bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def stored(name: str) -> Path:
    """The object that the cache holds of an output, or of a file of one."""
    for out in (out for stage in Repo().index.stages for out in stage.outs):
        path = Path(out.fs_path).relative_to(Path.cwd())
        if path == Path(name):
            return Path(os.path.relpath(out.cache_path))
        if path in Path(name).parents:
            entry = out.get_obj().get(Path(name).relative_to(path).parts)
            return Path(os.path.relpath(out.cache.oid_to_path(entry[1].value)))
    raise AssertionError(name)


def found(what: str | None = None):
    return [finding for finding in verify(Repo(), list) if what in (None, finding.what)]


def mend(findings) -> None:
    for line in commands(findings):
        program, *arguments = shlex.split(line)
        assert dvc(arguments) == 0 if program == "dvc" else subprocess.run([program, *arguments]).returncode == 0


def test_a_clean_study_passes(study):
    assert not found()


@pytest.mark.parametrize(
    ("output", "stage", "last"),
    [
        ("score.txt", "score", "dvc commit -f score"),
        ("model/tokens", "model", "dvc commit -f model"),
        ("model/deep/weights", "text", "dvc commit -f text"),  # the very bytes of text.txt, and stored once
    ],
)
def test_a_damaged_object_is_found_and_mended_from_the_working_tree(output, stage, last, study):
    damaged = stored(output)
    flip(damaged)
    assert Repo().status() == {}  # DVC goes by its name
    (finding,) = found("damaged object")
    assert (finding.path, finding.stage) == (damaged, stage)
    assert commands([finding]) == [f"rm -r {damaged}", last]
    mend([finding])
    assert not found() and Repo().status() == {}


def test_a_damaged_listing_of_a_folder_is_found_and_mended_from_the_working_tree(study):
    listing = stored("model")
    assert listing.suffix == ".dir"
    flip(listing)
    (finding,) = found()
    assert (finding.what, finding.path, finding.stage) == ("damaged object", listing, "model")
    mend([finding])
    assert not found() and Repo().status() == {}


@pytest.mark.parametrize("output", ["text.txt", "model/tokens", "model/deep/weights"])
def test_a_damaged_output_is_found_and_mended_from_the_cache(output, study):
    flip(Path(output))
    assert Repo().status() == {}  # DVC goes by size and time
    (finding,) = found()
    assert (finding.what, finding.path) == ("damaged output", Path(output))
    place = output.split("/")[0]
    assert commands([finding]) == [f"rm -r {place}", f"dvc checkout {place}"]
    mend([finding])
    assert not found() and Repo().status() == {}


def test_a_file_too_many_in_a_folder_is_found(study):
    Path("model/stray").write_text("no stage wrote this")
    (finding,) = found()
    assert (finding.what, finding.path, finding.stage) == ("damaged output", Path("model/stray"), "model")
    mend([finding])
    assert not found() and not Path("model/stray").exists()


def test_a_damaged_output_that_is_not_cached_is_made_anew(study):
    flip(Path("table.txt"))
    (finding,) = found()
    assert commands([finding]) == ["rm -r table.txt", "dvc repro -s score"]
    mend([finding])
    assert not found()


def test_what_a_frozen_stage_made_comes_from_git(study):
    flip(Path("given.txt"))
    (finding,) = found()
    assert (finding.stage, finding.mend) == ("given", "git restore given.txt")
    mend([finding])
    assert not found()


@pytest.mark.parametrize("remote", [False, True])
def test_where_no_whole_copy_is_left_the_stage_runs_again_or_the_remote_has_it(remote, study, tmp_path):
    if remote:
        assert dvc(["remote", "add", "-q", "-d", "shared", str(tmp_path / "remote")]) == dvc(["push", "-q"]) == 0
    flip(stored("score.txt"))
    flip(Path("score.txt"))
    damaged = found()
    assert {finding.what for finding in damaged} == {"damaged object", "damaged output"}
    assert commands(damaged)[-1] == ("dvc pull score" if remote else "dvc repro -s score")
    mend(damaged)
    assert not found() and Repo().status() == {}


def test_damage_in_several_places_is_mended_at_once(study):
    """An object that is still damaged when its stage is committed would be copied over the whole file."""
    for output in ("model/tokens", "model/deep/weights", "model"):
        flip(stored(output))
    flip(Path("table.txt"))
    damaged = found()
    assert len(damaged) == 4
    mend(damaged)
    assert not found() and Repo().status() == {}


def test_a_damaged_object_of_an_earlier_run_is_only_removed(study):
    before = stored("text.txt")
    Path("source.txt").write_text("another text")
    assert dvc(["repro", "-q"]) == 0
    flip(before)
    (finding,) = found()
    assert (finding.path, finding.stage) == (before, None)
    mend([finding])
    assert not found() and not before.exists()


def test_a_missing_object_is_no_damage(study):
    stored("score.txt").unlink()
    (finding,) = found()
    assert (finding.what, finding.stage, finding.mend) == ("missing object", "score", "dvc commit -f score")
    Path("score.txt").unlink()
    (finding,) = found()
    assert (finding.what, finding.mend) == ("missing object", "dvc repro -s score")
    mend([finding])
    assert not found()


def test_an_input_that_changed_is_named(study):
    flip(Path("source.txt"))
    (finding,) = found()
    assert (finding.what, finding.path, finding.stage) == ("changed input", Path("source.txt"), "text")


def test_the_command_says_so_and_fails_only_where_something_is_damaged(study):
    def make_verify():
        return subprocess.run(
            [sys.executable, "-m", "stages.commands.verify"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
        )  # fmt: skip

    stored("score.txt").unlink()
    done = make_verify()
    assert done.returncode == 0 and "missing objects: 1 (`dvc commit -f score`)" in done.stdout
    flip(Path("text.txt"))
    done = make_verify()
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "damaged output: text.txt (text)" in done.stdout
    assert done.stdout.endswith("rm -r text.txt\ndvc checkout text.txt\n")


@pytest.mark.parametrize(("stages", "lines"), [(2, 3), (120, 2)])
def test_where_nothing_was_run_one_line_says_so(stages, lines, monkeypatch, capsys):
    missing = [Finding("missing object", Path(f"{n}"), f"s@{n}", mend=f"dvc repro -s s@{n}") for n in range(stages)]
    monkeypatch.setattr(command, "verify", lambda *_: missing)
    monkeypatch.setattr(command.repository, "opened", lambda: None)
    command.main()
    said = capsys.readouterr().out
    assert said.count("\n") == lines and f"{stages} missing" in said and "To mend" not in said
    assert ("`make repro` makes them" in said) == (stages > command.FEW)
