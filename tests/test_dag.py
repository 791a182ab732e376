"""dvc.yaml says exactly what each stage reads, and DVC reruns exactly what a change affects."""

import ast
import re
import shutil
from contextlib import chdir
from functools import cache
from pathlib import Path

import networkx
import pytest
from closure import CORE, ROOMS, ROOT, closure, dependencies, imports
from dvc.dependency import param
from dvc.repo import Repo
from ruamel.yaml import YAML
from shrunk import KEPT, run

from stages.core.running import params_file
from stages.core.settings import params

DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = {name: entry.get("do", entry) for name, entry in DVC["stages"].items()}

# What a change touches, and what runs again because of it: the stages touched and all that follow.
MEASURES = "perplexity sentiment generate latency summarize"
FINETUNE = f"finetune {MEASURES} report"
CONTROL = f"control {FINETUNE}"
SURGERY = f"surgery {FINETUNE}"
SEARCH = f"search {SURGERY}"
ALIGN = f"align {SEARCH}"
CORRELATE = f"correlate {ALIGN}"
EXTRACT = f"extract {CORRELATE}"
PREPARE = f"prepare control {EXTRACT}"
BASE = f"base reviews {PREPARE}"
ALL = f"articles {BASE}"
EVERYTHING = f"pretrain pretrain_digits {ALL}"
# What opens a checkpoint of a variant.
SHARED = f"control search surgery finetune {MEASURES}"

# Every section of params.yaml; of a variant's section, only its own chain.
PARAMS = {
    "profile": (ALL, ALL),
    "profiles.small.task": ("", ""),  # checked at the door; the stages ask the model
    "profiles.small.runtime": (
        f"extract correlate align control search surgery finetune {MEASURES}",
        f"control {EXTRACT}",
    ),
    "profiles.small.base": ("base", BASE),
    "profiles.small.prepare": ("prepare", PREPARE),
    "profiles.small.reviews": ("reviews", "reviews sentiment report"),
    "profiles.small.articles": ("articles", "articles summarize report"),
    "profiles.small.extract": ("extract", EXTRACT),
    "profiles.small.correlate": ("correlate align", CORRELATE),
    "profiles.small.search": ("search", SEARCH),
    "profiles.small.finetune": ("control finetune", CONTROL),
    "profiles.small.perplexity": ("perplexity", "perplexity report"),
    "profiles.small.sentiment": ("sentiment", "sentiment report"),
    "profiles.small.generate": ("generate", "generate report"),
    "profiles.small.latency": ("latency", "latency report"),
    "profiles.small.summarize": ("summarize", "summarize report"),
    "profiles.gpt2": ("", ""),
    "profiles.digits": ("", ""),
    "profiles.vit": ("", ""),
    "profiles.deit": ("", ""),
    "profiles.swin": ("", ""),
    "profiles.tinyvit": ("", ""),
    "profiles.smollm2": ("", ""),
    "profiles.smollm2_local": ("", ""),
    "profiles.gemma3_local": ("", ""),
    "variants.*.windows": ("search finetune report", SEARCH),  # where layers may go, hidden states are no targets
    "variants.*.surgery": ("search surgery finetune report", SEARCH),
    "variants.*.finetune": ("finetune report", FINETUNE),
    "variants.*.skip": ("report", "report"),
    "pretrain": ("pretrain", ""),  # frozen: touched, but not run
    "pretrain_digits": ("pretrain_digits", ""),
}

# Every file under stages/ but the commands, without its ending; braces as in a shell. A room is one dependency.
CODE = {
    "__init__ core/__init__": ("", ""),
    "core/process/{__init__ artifacts command devices environment errors guard hub memory progress scratch}": (
        f"pretrain pretrain_digits {ALL}",
        ALL,
    ),
    "core/settings/{__init__ images messages params pretraining profiles recoveries section splits surgeries texts"
    " trainings variants windows}": (
        f"pretrain pretrain_digits {ALL}",
        ALL,
    ),
    "core/architecture/{__init__ attention depth families ffn fused gguf_config gguf_header guessing opening rules"
    " shape targets tokens view vision_families vision_shape weights windows}": (
        f"pretrain base extract align {SHARED}",
        BASE,
    ),
    "core/text/{__init__ corpus labelled sources stories tokenizer}": (
        f"pretrain prepare articles reviews extract {SHARED}",
        f"articles reviews {PREPARE}",
    ),
    "core/tasks/{__init__ choice images interface intervals language likeliest losses notes timing}": (
        "pretrain extract control search surgery finetune perplexity sentiment generate latency",
        f"control {EXTRACT}",
    ),
    "core/images/{__init__ augmentation dataset digits sources table}": (
        "pretrain_digits prepare extract control search surgery finetune perplexity generate latency",
        PREPARE,
    ),
    "core/forms/{__init__ checkpoint counting dense modeling_shared_ffn structure}": (SHARED, f"control {SEARCH}"),
    "core/calibration/{__init__ activations alignment correlation moments statistics}": (
        "extract correlate align search surgery",
        EXTRACT,
    ),
    "core/shrinking/{__init__ ablation arranging baselines budgets curve fitting joint layer_search limits lowrank"
    " making members merging mixing operations options probes ranks refitting repair sharing window_search}": (
        "search surgery",
        SEARCH,
    ),
    "core/training/{__init__ answers files loop recovery resuming runs}": (
        "pretrain pretrain_digits control finetune sentiment summarize",
        CONTROL,
    ),
    "core/evaluation/{__init__ beams classification rouge summaries}": (
        "sentiment summarize",
        "sentiment summarize report",
    ),
    "core/reporting/{__init__ answers beside card chapters drawing facts page paired pictures published study"
    " tables}": (
        "report",
        "report",
    ),
    "core/running/{__init__ board calls choice code_folders counted dvc_child estimates gpus graph leftovers lock_file"
    " origins params_file quantities repository resolved screen server verification wire}": ("", ""),  # of commands
    "run": ("", ""),
    "pretrain": ("pretrain", ""),
    "pretrain_digits": ("pretrain_digits", ""),
    "base": ("base", BASE),
    "prepare": ("prepare", PREPARE),
    "articles": ("articles", "articles summarize report"),
    "reviews": ("reviews", "reviews sentiment report"),
    "extract": ("extract", EXTRACT),
    "correlate": ("correlate", CORRELATE),
    "align": ("align", ALIGN),
    "control": ("control", CONTROL),
    "search": ("search", SEARCH),
    "surgery": ("surgery", SURGERY),
    "finetune": ("finetune", FINETUNE),
    "perplexity": ("perplexity", "perplexity report"),
    "sentiment": ("sentiment", "sentiment report"),
    "generate": ("generate", "generate report"),
    "latency": ("latency", "latency report"),
    "summarize": ("summarize", "summarize report"),
    "report": ("report", "report"),
}

# Files that are no code: one of each folder that a stage depends on.
DATA = {
    "data/lexicon.yaml": ("pretrain prepare articles reviews", f"articles reviews {PREPARE}"),
    "data/reviews.yaml": ("reviews", "reviews sentiment report"),
    "data/summaries.yaml": ("articles", "articles summarize report"),
    "data/published.yaml": ("report", "report"),
    "data/model/config.json": ("base", BASE),
    "data/digits/digits.parquet": ("pretrain_digits prepare", PREPARE),
    "data/digits/model/config.json": ("base", BASE),
    "data/local/images/mine.png": ("prepare", PREPARE),
    "data/local/model/mine.safetensors": ("base surgery", BASE),
    "data/local/text/mine.parquet": ("prepare articles reviews", f"articles reviews {PREPARE}"),
    "templates/report.md.j2": ("report", "report"),
    "data/harness/reviews.yaml": ("", ""),
}


def names(items) -> list[str]:
    """Entries of a list in dvc.yaml, some of which carry options."""
    return [next(iter(item)) if isinstance(item, dict) else item for item in items or []]


def test_every_module_under_stages_is_a_stage_of_that_name():
    """But for `run`, which starts them all and computes nothing."""
    modules = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "run"}
    assert modules == set(STAGES)
    assert all(stage["cmd"].startswith(f"python -m stages.run {name} --") for name, stage in STAGES.items())
    # What starts a stage is no dependency of it, and so may hold nothing that changes what it computes.
    assert closure("stages.run") == {"stages/run.py", "stages/core/running/wire.py"}


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_the_import_closure(name):
    code = [dep for dep in STAGES[name]["deps"] if dep.startswith("stages/")]
    assert len(code) == len(set(code))
    assert set(code) == dependencies(f"stages.{name}")


def allowed(room: str) -> set[str]:
    """The rooms that the docstring of a room's `__init__` lets it import."""
    tree = ast.parse((CORE / room / "__init__.py").read_text())
    assert len(tree.body) == 1, f"{room}/__init__.py holds more than its docstring"
    what, _, said = ast.get_docstring(tree).split("\n")
    named = said.removeprefix("May import: ").removesuffix(".")
    assert what and said == f"May import: {named}."
    return set() if named == "nothing of this project" else set(named.split(", "))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_docstring_says(room):
    found = {name.split(".")[2] for path in (CORE / room).glob("*.py") for name in imports(path)} - {room}
    assert found == allowed(room)


def test_arrows_between_rooms_run_one_way():
    arrows = networkx.DiGraph([(room, other) for room in ROOMS for other in allowed(room)])
    assert not list(networkx.simple_cycles(arrows))


def test_no_module_lies_beside_the_rooms():
    assert [path.name for path in CORE.glob("*.py")] == ["__init__.py"]
    assert {path.name for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


def test_no_module_has_the_name_of_a_stage():
    assert not {path.stem for path in CORE.rglob("*.py")} & set(STAGES)
    assert not set(ROOMS) & set(STAGES)


# Sections of a variant whose defaults depend on others of its sections (`recoveries.usual_recovery`).
FILLED_IN_BY = {"finetune": ["surgery", "windows"]}


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
                section = node.args[1].value
                read |= {f"variants.${{key}}.{part}" for part in [section, *FILLED_IN_BY.get(section, [])]}
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
    indirect = {"data/model", "data/digits/model", "data/local/model", "data/local/text", "data/local/images"}
    indirect |= {"data/digits/digits.parquet"} if name == "prepare" else set()
    indirect -= set(outs)
    for path in [dep for dep in stage["deps"] if not dep.startswith("stages/") and dep not in indirect] + outs:
        assert any(path == value or path.startswith(value + "/") for value in values), path


def test_every_named_artifact_is_the_checkpoint_of_a_variant():
    variants = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["variants"]
    for name, artifact in DVC["artifacts"].items():
        variant = name.replace("-", "_")  # names of artifacts have no underscore
        assert variant in variants and artifact["path"] == f"artifacts/finetuned/{variant}"
    outs = STAGES["finetune"]["outs"]
    assert any("artifacts/finetuned/${key}" in (out if isinstance(out, str) else next(iter(out))) for out in outs)


def test_core_reads_no_fixed_path():
    """Paths stand in dvc.yaml; core modules get them from the stages (params.py alone knows its file's name)."""
    for path in (ROOT / "stages" / "core").rglob("*.py"):
        strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        assert not [s for s in strings if isinstance(s, str) and re.match(r"(artifacts|metrics|data)/", s)], path


# The table against DVC


def leaves(values, path=()) -> list[tuple]:
    """The keys of every value that is no mapping."""
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]


def rows_of(leaf: tuple) -> list[str]:
    """The rows of PARAMS that a leaf falls under."""
    return [row for row in PARAMS if all(step in ("*", key) for step, key in zip(row.split("."), leaf + ("",) * 9))]


def instances(stages: str, variant: str | None = None) -> set[str]:
    """A row's stages by DVC's own names: one for each variant, or for one only."""
    return {
        f"{name}@{key}" if "foreach" in DVC["stages"][name] else name
        for name in stages.split()
        for key in ([variant] if variant else KEPT)
    }


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, *(value[-1:] or [0])]
    return f"{value}x" if isinstance(value, str) else (value or 0) + 1


def files(row: str) -> list[str]:
    """The files of a row of CODE or DATA: those named, those in braces with what stands before."""
    folder, brace, inside = row.partition("{")
    return [f"{folder}{name}" for name in inside.rstrip("}").split()] if brace else row.split()


def test_every_leaf_of_params_falls_under_one_row():
    found = leaves(params.load(ROOT / "params.yaml").model_dump())
    assert {leaf: rows_of(leaf) for leaf in found if len(rows_of(leaf)) != 1} == {}


def test_every_code_file_stands_in_one_row():
    listed = [f"stages/{name}.py" for row in CODE for name in files(row)]
    there = [path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py")]
    assert sorted(listed) == sorted(str(path) for path in there if path.parent.name != "commands")


def test_every_dependency_that_no_stage_makes_has_a_row():
    deps = {dep for stage in STAGES.values() for dep in stage["deps"] if re.match("data|templates", dep)}
    assert all(any(path == dep or path.startswith(dep + "/") for path in DATA) for dep in deps)


@pytest.fixture(scope="module")
def study(clone, tmp_path_factory) -> Path:
    """A copy of the clone, as the current folder, in which DVC also says what touches the frozen stage."""
    folder = tmp_path_factory.mktemp("table") / "study"
    shutil.copytree(clone, folder, symlinks=True, ignore=lambda path, _: ["cache"] if path.endswith(".dvc") else [])
    graph = folder / "dvc.yaml"
    graph.write_text(graph.read_text().replace("    frozen: true\n", ""))
    run(folder, "dvc", "commit", "-q", "-f", "pretrain", "pretrain_digits")
    # DVC's names for stages and files are relative to it. DVC parses params.yaml anew for every stage, which is half of
    # the time that it takes.
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(param, "load_path", param.load_path)
        params_file.install()
        assert changes(folder) == {}
        yield folder


def changes(folder: Path) -> dict[str, dict[str, list[str]]]:
    """For every dependency and param that changed, and `command`: the stages that DVC says it touches."""
    touched = {}
    for stage, found in Repo(folder).status().items():
        for change in found:
            if change == "changed command":
                touched.setdefault("command", set()).add(stage)
            for path, what in change.get("changed deps", {}).items() if isinstance(change, dict) else ():
                for cause in what if isinstance(what, dict) else [path]:
                    touched.setdefault(cause, set()).add(stage)
    return touched


@cache
def follow(folder: Path) -> dict[str, set[str]]:
    """Each stage of DVC's graph with all that follows from it; nothing runs because of a frozen one."""
    graph = Repo(folder).index.graph
    after = {stage.addressing: {s.addressing for s in networkx.ancestors(graph, stage) | {stage}} for stage in graph}
    return after | {"pretrain": set(), "pretrain_digits": set()}


def check(folder: Path, touched: set[str], row: tuple[str, str], variant: str | None = None) -> None:
    assert touched == instances(row[0], variant)
    assert set().union(*(follow(folder)[stage] for stage in touched)) == instances(row[1], variant)


def test_every_value_touches_and_reruns_what_its_row_says(study):
    """One value of every section at a time, said by the file or left to its default: DVC names the section."""
    path, yaml = study / "params.yaml", YAML(typ="safe")
    before, resolved = path.read_text(), params.load(path).model_dump()
    said = set(leaves(yaml.load(before)))
    assert {("profiles", "small", "finetune", "clip"), ("variants", "merged_4", "surgery", "base")}.isdisjoint(said)
    waiting = {}
    for leaf in leaves(resolved):
        if leaf != ("profile",):
            waiting.setdefault(".".join(leaf[:1] if leaf[0].startswith("pretrain") else leaf[:3]), []).append(leaf)
    try:
        while waiting:
            values = yaml.load(before)
            changed = {section: found.pop() for section, found in waiting.items()}
            waiting = {section: found for section, found in waiting.items() if found}
            for *above, key in changed.values():
                place, known = values, resolved
                for step in above:
                    place, known = place.setdefault(step, {}), known[step]
                place[key] = other(known[key])
            with path.open("w") as file:
                yaml.dump(values, file)
            touched = changes(study)
            for section, leaf in changed.items():
                stages = [found for cause, found in touched.items() if f"{section}.".startswith(f"{cause}.")]
                check(study, set().union(*stages), PARAMS[rows_of(leaf)[0]], leaf[1] if leaf[0] == "variants" else None)
            assert all(any(f"{section}.".startswith(f"{cause}.") for section in changed) for cause in touched)
    finally:
        path.write_text(before)


def test_the_switch_of_the_profile_touches_and_reruns_all(study):
    path = study / "params.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("profile: small", "profile: gpt2"))
        check(study, changes(study)["command"], PARAMS["profile"])
    finally:
        path.write_text(before)


@pytest.mark.parametrize("table", [CODE, DATA], ids=["code", "data"])
def test_every_file_touches_and_reruns_what_its_row_says(table, study):
    """All at once: DVC names the file, or the folder that it lies in."""
    rows = {
        (f"stages/{name}.py" if table is CODE else name): row for group, row in table.items() for name in files(group)
    }
    before = {name: (study / name).read_bytes() for name in rows if (study / name).exists()}
    try:
        for name in rows:
            (study / name).write_bytes(before.get(name, b"") + b"\n# another line\n")
        touched = changes(study)
        for name, row in rows.items():
            stages = [found for cause, found in touched.items() if f"{name}/".startswith(f"{cause}/")]
            check(study, set().union(*stages), row)
        assert all(any(f"{name}/".startswith(f"{cause}/") for name in rows) for cause in touched)
    finally:
        for name in rows:
            (study / name).write_bytes(before[name]) if name in before else (study / name).unlink()
