"""The Makefile wherever the folder lies: a path with a space, a folder renamed after `make`, an archive without git."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from closure import ROOT

# Stands in for `python3 -m venv .venv`: what it makes says what it is asked to do.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "$0 $*"\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder whose path has a space, with a Makefile and a Python that makes environments at once."""
    folder = tmp_path / "my study"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def run_make(folder: Path, *targets: str) -> subprocess.CompletedProcess:
    command = ["make", f"PYTHON={folder.parent}/python3", *targets]
    # `make test` hands these down, and then every `make` says which folder it enters.
    surroundings = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=folder, env=surroundings, text=True, capture_output=True)


def make(folder: Path, *targets: str) -> str:
    """What `make` prints."""
    done = run_make(folder, *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_make_alone_lists_every_target_in_a_line_and_makes_nothing(folder):
    listed = make(folder)
    text = (folder / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    assert [line.split()[1] for line in listed.splitlines()] == targets
    assert all(len(line.split()) > 3 and len(line) <= 80 for line in listed.splitlines())
    assert make(folder, "help") == listed and not (folder / ".venv").exists()


@pytest.mark.parametrize(
    "target",
    ["repro", "check", "models", "test", "verify", "export", "push", "quantise", "harness", "ablation", "curve"],
)
def test_every_target_works_in_a_path_with_a_space(target, folder):
    ran = [line for line in make(folder, target).splitlines() if "/.venv/bin/python -m " in line or "pip" in line]
    module = {"test": "pytest", "ablation": "stages.commands.ablate"}.get(target, f"stages.commands.{target}")
    assert f"{folder}/.venv/bin/python -m {module}" in ran[-1] and "pip install" in "".join(ran[:-1])


def test_a_misspelt_variable_is_told_and_nothing_is_made(folder):
    done = run_make(folder, "SIZE=0.9", "curve")
    assert done.returncode and "SIZE means nothing here; known are PYTHON" in done.stderr and not done.stdout
    assert not (folder / ".venv").exists()


def test_every_variable_that_a_command_reads_may_be_given():
    text = (ROOT / "Makefile").read_text()
    known = set(re.search(r"^KNOWN := (.*)$", text, re.MULTILINE)[1].split())
    own = {"BIN", "CURDIR", "GIVEN", "INSTALLED", "KNOWN", "PATH", "UNKNOWN"}
    assert set(re.findall(r"\$\((?:or \$\()?([A-Z]+)\b", text)) - own == known


def test_a_renamed_folder_works_and_says_what_does_not(folder):
    assert "rm -r .venv" not in make(folder, "check") + make(folder, "check")
    renamed = folder.rename(folder.with_name("our study"))
    said = make(renamed, "check")
    assert f"{renamed}/.venv/bin/python -m stages.commands.check" in said
    assert str(folder) in said and "rm -r .venv" in said
    assert f"{renamed}/.venv/bin/python -m pytest" in make(renamed, "test")


@pytest.mark.parametrize("command", ["repro --jobs 1", "verify"])
def test_an_archive_without_git_is_one_line_with_the_remedy(command, tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=lambda path, names: set(names) - {"config"})
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.commands.{name}", *options],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "git init && git add -A && git commit" in done.stderr


COMMAND = re.compile(r"python -m stages\.commands\.(\w+)((?:[^\n]*\\\n)*[^\n]*)")


@pytest.mark.parametrize("name, recipe", COMMAND.findall((ROOT / "Makefile").read_text()))
def test_a_recipe_gives_every_option_that_its_command_asks_for(name, recipe):
    asked = inspect.signature(importlib.import_module(f"stages.commands.{name}").main).parameters
    assert {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", recipe)} == asked.keys()
