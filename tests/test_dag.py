"""dvc.yaml says exactly what each stage reads, and DVC reruns exactly what a change affects."""

import ast
import re

import pytest
from closure import ROOT, closure
from ruamel.yaml import YAML

DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = {name: entry.get("do", entry) for name, entry in DVC["stages"].items()}


def names(items) -> list[str]:
    """Entries of a list in dvc.yaml, some of which carry options."""
    return [next(iter(item)) if isinstance(item, dict) else item for item in items or []]


def test_every_module_under_stages_is_a_stage_of_that_name():
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    assert all(f"python -m stages.{name}" in stage["cmd"] for name, stage in STAGES.items())


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_the_import_closure(name):
    code = [dep for dep in STAGES[name]["deps"] if dep.endswith(".py")]
    assert len(code) == len(set(code))
    assert set(code) == closure(f"stages.{name}")


@pytest.mark.parametrize("name", STAGES)
def test_params_declared_are_the_params_read(name):
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text())
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("params."):
            asked = node.func.attr
            if asked == "section":
                read.add("profiles.${profile}." + node.args[1].value)
            elif asked == "variant":
                read.add("variants.${key}." + node.args[1].value)
            else:
                read.add(asked)
    assert set(names(STAGES[name].get("params"))) == read


@pytest.mark.parametrize("name", STAGES)
def test_every_path_of_a_command_is_a_dependency_or_an_output(name):
    stage = STAGES[name]
    known = names(stage["deps"]) + [path for kind in ("outs", "metrics", "plots") for path in names(stage.get(kind))]
    for option, value in re.findall(r"--([\w-]+) (\S+)", stage["cmd"]):
        if option in ("profile", "variant", "unfinished"):  # the last is scratch, gone when the stage ends
            continue
        assert any(path == value or path.startswith(value + "/") for path in known), f"--{option} {value}"


@pytest.mark.parametrize("name", STAGES)
def test_every_dependency_and_output_reaches_the_command(name):
    stage = STAGES[name]
    values = [value for _, value in re.findall(r"--([\w-]+) (\S+)", stage["cmd"])]
    outs = [path for kind in ("outs", "metrics", "plots") for path in names(stage.get(kind))]
    # What a profile may point at, by params.yaml instead of the command.
    indirect = {"data/model", "data/local/model", "data/local/text"} - set(outs)
    for path in [dep for dep in stage["deps"] if not dep.endswith(".py") and dep not in indirect] + outs:
        assert any(path == value or path.startswith(value + "/") for value in values), path


def test_core_reads_no_fixed_path():
    """Paths stand in dvc.yaml; core modules get them from the stages (params.py alone knows its file's name)."""
    for path in (ROOT / "stages" / "core").glob("*.py"):
        strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        assert not [s for s in strings if isinstance(s, str) and re.match(r"(artifacts|metrics|data)/", s)], path
