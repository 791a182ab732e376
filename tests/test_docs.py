"""README and docs say what is there: their length, links, `make` targets, keys of params.yaml, paths and tests."""

import ast
import re
import subprocess
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from closure import ROOMS, ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from shrunk import run

from stages.core.architecture.families import FAMILIES
from stages.core.settings.params import Params
from stages.core.settings.recoveries import usual_recovery

README, DOCS = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, *sorted(ROOT.glob("data/local/*/README.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
VALUES = YAML(typ="safe").load((ROOT / "params.yaml").read_text())


# ------------------------------------------------------------------------------------------------ reading a page


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path, kind: str) -> list[Token]:
    """Tokens of one kind within the page's text, tables and headings included."""
    return [child for token in tokens(page) for child in token.children or () if child.type == kind]


def spans(page: Path) -> list[str]:
    """What stands in backticks in the text."""
    return [token.content for token in inline(page, "code_inline")]


def commands(page: Path) -> list[str]:
    """The lines of code blocks that are commands: of a shell block all, of others those after a `$`."""
    lines = []
    for block in (token for token in tokens(page) if token.type == "fence"):
        shell = block.info.strip() in ("sh", "bash")
        lines += [line.removeprefix("$ ") for line in block.content.splitlines() if shell or line.startswith("$ ")]
    return lines


def slugs(page: Path) -> set[str]:
    """The anchors that a hub makes of the page's headings."""
    after = zip(tokens(page), tokens(page)[1:])
    titles = [text.content for token, text in after if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


def tables(page: Path) -> dict[str, list[list[str]]]:
    """Heading -> the rows, without their head, of the tables below it; cells as they are written."""
    found: dict[str, list[list[str]]] = {}
    heading, row, within = "", None, tokens(page)
    for number, token in enumerate(within):
        if token.type == "heading_open":
            heading = within[number + 1].content.strip("`")
        elif token.type == "tr_open":
            row = []
        elif token.type == "td_open":
            row.append(within[number + 1].content)
        elif token.type == "tr_close" and row:
            found.setdefault(heading, []).append(row)
    return found


def paragraphs(page: Path) -> list[str]:
    """Running text: paragraphs and list items, neither tables nor code."""
    within = tokens(page)
    return [after.content for token, after in zip(within, within[1:]) if token.type == "paragraph_open"]


# ---------------------------------------------------------------------------------------------- the shape of a page


def test_the_readme_fits_on_a_few_screens():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@every_page
def test_no_paragraph_is_long(page):
    assert not [text[:60] for text in paragraphs(page) if len(text.split()) > 80]


WORDS = re.compile(r"\bthe notes\b|\barms?\b|\bheal(?:ing|ed)\b|\bgroups? of (?:\w+ )?layers\b", re.IGNORECASE)


def test_one_thing_has_one_word():
    """Research notes, recovery, windows: docs/method.md says what each means, and may name the words of others."""
    known = tables(ROOT / "docs" / "method.md")["Words"]
    assert {"layer", "window", "recovery", "repair", "seed"} <= {row[0] for row in known}
    pages = [README, *DOCS, *(ROOT / "templates").iterdir(), *(ROOT / name for name in ("params.yaml", "dvc.yaml"))]
    texts = {page.name: page.read_text(encoding="utf-8") for page in [*pages, ROOT / "data/published.yaml"]}
    texts["method.md"] = texts["method.md"].replace("others call it healing", "")
    assert {name: found for name, text in texts.items() if (found := WORDS.findall(text))} == {}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_of_docs_begins_with_its_question_and_is_linked(page):
    assert "?" in paragraphs(page)[0]
    assert page.relative_to(ROOT).as_posix() in {link.split("#")[0] for link in links(README)}


# ------------------------------------------------------------------------------------------------------------ links


def links(page: Path) -> list[str]:
    return [token.attrs["href"] for token in inline(page, "link_open")] + [
        token.attrs["src"] for token in inline(page, "image")
    ]


@every_page
def test_every_relative_link_leads_somewhere(page):
    broken = []
    for link in (link for link in links(page) if "://" not in link):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        known = there.relative_to(ROOT).as_posix() in versioned() or there.is_dir()
        if not known or (anchor and anchor not in slugs(there)):
            broken.append(link)
    assert not broken


# ---------------------------------------------------------------------------------------------------------- targets


def targets() -> set[str]:
    """The targets of the Makefile that are commands."""
    (line,) = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.M)
    return set(line.split())


@every_page
def test_every_make_target_exists(page):
    said = [line for line in spans(page) + commands(page) if re.match(r"make( |$)", line)]
    asked = {word for line in said for word in line.split("#")[0].split()[1:2] if "=" not in word}
    assert asked <= targets()


def test_make_help_lists_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    listed = {match[1] for line in said.splitlines() if (match := re.match(r"\s*(?:make )?([a-z_-]+)\b", line))}
    assert targets() - listed == set()


def test_the_page_on_running_names_every_target():
    rows = tables(ROOT / "docs" / "running.md")["The commands"]
    assert {row[0].strip("`").removeprefix("make ") for row in rows} == targets()


# ------------------------------------------------------------------------------------------------------------ paths


@cache
def versioned() -> set[str]:
    """Every file of the working tree that git does not ignore, and the folders that hold them."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = {name for name in listed if name and (ROOT / name).exists()}
    return files | {parent.as_posix() for name in files for parent in Path(name).parents}


@cache
def made() -> set[str]:
    """Every output of the DAG, `${key}` as `*`, and the folders that hold them."""
    stages = [stage.get("do", stage) for stage in DVC["stages"].values()]
    outs = [out for stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
    names = {re.sub(r"\$\{\w+\}", "*", next(iter(out)) if isinstance(out, dict) else out) for out in outs}
    return names | {parent.as_posix() for name in names for parent in Path(name).parents}


# What commands leave, or what a user has of their own; git ignores them and no stage makes them.
ELSEWHERE = (
    "exported*",
    ".venv*",
    ".dvc/cache*",
    ".dvc/tmp*",
    "data/local/*",
    "artifacts/unfinished*",
    "artifacts/logs*",
    "artifacts/curve*",
)
ROOTS = {name.split("/")[0] for name in ("stages", "tests", "data", "artifacts", "metrics", "docs", "templates")}


def is_path(span: str) -> bool:
    head, slash, _ = span.partition("/")
    local = head in ROOTS and (slash or span == head)
    named = re.fullmatch(r"[\w-]+\.(md|yaml|txt|toml|lock)|Makefile", span)
    return bool((local or named) and re.fullmatch(r"[\w./*…-]+", span))


def exists(path: str) -> bool:
    """Whether a path is there or would be made; a word in capitals stands for any name."""
    pattern = re.sub(r"\b[A-Z]{2,}\b", "*", path.rstrip("/"))
    if path in versioned() or any(fnmatchcase(path, wild) for wild in ELSEWHERE):
        return True
    inside = [name for name in made() if "*" not in name]
    return (
        any(fnmatchcase(name, pattern) for name in versioned())
        or any(fnmatchcase(pattern, name) for name in made())
        or any(pattern.startswith(f"{name}/") for name in inside if name not in {".", "artifacts", "metrics"})
        or any(re.match(name.replace("*", "[^/]+") + "/", pattern) for name in made() if "*" in name)
    )


@every_page
def test_every_path_exists(page):
    assert not [span for span in spans(page) if is_path(span) and span not in {"README.md"} and not exists(span)]


@every_page
def test_every_test_that_is_named_exists(page):
    """`test_file` or `test_file::test_name`, where … stands for the rest of a name."""
    missing = []
    for span in spans(page):
        if match := re.fullmatch(r"(?:tests/)?(test_\w+)(?:\.py)?(?:::(\w+)(…?))?", span):
            file, name, rest = match.groups()
            path = ROOT / "tests" / f"{file}.py"
            code = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
            names = [node.name for node in code if isinstance(node, ast.FunctionDef)]
            if not path.is_file() or (name and not any(n == name or (rest and n.startswith(name)) for n in names)):
                missing.append(span)
    assert not missing


def test_the_readme_names_every_stage_family_profile_and_folder():
    text = README.read_text(encoding="utf-8")
    (drawing,) = [token.content for token in tokens(README) if token.type == "fence" and "prepare" in token.content]
    assert set(DVC["stages"]) <= set(re.findall(r"\w+", drawing))
    assert all(f"`{name}`" in text for family in FAMILIES for name in family.model_types)
    assert all(f"`{name}`" in text for name in VALUES["profiles"])


def test_the_page_on_extending_names_every_room():
    assert {row[0].strip("`") for row in tables(ROOT / "docs" / "extending.md")["The rooms"]} == set(ROOMS)


# ----------------------------------------------------------------------------------------------------------- params


def models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (list, dict):
        return []
    return [model for part in get_args(annotation) for model in models(part)]


def keys(sections: list[type[BaseModel]], before: str = "") -> dict[str, list[FieldInfo]]:
    """Dotted key -> the fields that it is, of a section or of those that may stand in its place."""
    found: dict[str, list[FieldInfo]] = {}
    for name in dict.fromkeys(name for section in sections for name in section.model_fields):
        fields = [section.model_fields[name] for section in sections if name in section.model_fields]
        below = [model for field in fields for model in models(field.annotation)]
        # A section that has to be there, or is by itself, is known by its keys alone.
        plain = any(not models(field.annotation) or field.default is None for field in fields) or leaves(fields)
        if plain:
            found[before + name] = fields
        if below:
            found |= keys(below, f"{before}{name}.")
    return found


def leaves(fields: list[FieldInfo]) -> bool:
    """Whether a value that is no section may stand there."""

    def plain(annotation: Any) -> bool:
        if get_origin(annotation) in (Union, Annotated) or type(annotation).__name__ in ("Union", "UnionType"):
            return any(
                plain(part) for part in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
            )
        return annotation is not type(None) and not models(annotation)

    return any(plain(field.annotation) for field in fields)


def headings() -> dict[str, list[type[BaseModel]]]:
    """What each table of docs/parameters.md is about."""
    fields = Params.model_fields
    profile, variant = (
        models(get_args(fields["profiles"].annotation)[1]),
        models(get_args(fields["variants"].annotation)[1]),
    )
    language, images = ({name: models(f.annotation) for name, f in kind.model_fields.items()} for kind in profile)
    found = {f"profiles.NAME.{name}": sections for name, sections in language.items() if sections}
    own = {name: sections for name, sections in images.items() if sections != language[name]}
    found |= {f"images: profiles.NAME.{name}": sections for name, sections in own.items() if sections}
    parts = {name: models(field.annotation) for name, field in variant[0].model_fields.items()}
    found |= {f"variants.NAME.{name}": sections for name, sections in parts.items() if sections}
    return found | {name: models(fields[name].annotation) for name in ("pretrain", "pretrain_digits")}


def written(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, str):
        return f"`{value}`".replace("\n", r"\n")
    if isinstance(value, float) and 0 < value < 0.01:  # 5e-05 would be a string to YAML
        return "`{}e-{}`".format(*re.fullmatch(r"(.*)e-0?(\d+)", f"{value:.1e}").groups())
    return "`null`" if value is None else f"`{str(value).lower()}`"


def default(field: FieldInfo) -> str:
    """What stands for it in the page; of a default that depends on another value what its description says."""
    if field.default_factory_takes_validated_data:
        return field.description.removeprefix("default: ")
    return "required" if field.is_required() else written(field.default)


def defaults(heading: str) -> dict[str, set[str]]:
    """Key -> its defaults, one for each section that may stand there."""
    found = {key: {default(field) for field in fields} for key, fields in keys(headings()[heading]).items()}
    if heading == "variants.NAME.finetune":  # what a variant is asked for that does not say it
        usual = usual_recovery("share", {})
        found |= {"teacher": {written(usual["teacher"])}, "distill": {"`{}`"}}
        found |= {f"distill.{key}": {written(value)} for key, value in usual["distill"].items()}
    return found


def choices(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return {str(choice) for choice in get_args(annotation)}
    return {choice for part in get_args(annotation) for choice in choices(part)}


PARAMETERS = ROOT / "docs" / "parameters.md"


def test_the_page_on_parameters_has_a_table_for_every_section():
    assert set(tables(PARAMETERS)) == {*headings(), "params.yaml"}


@pytest.mark.parametrize("heading", sorted(headings()))
def test_the_page_on_parameters_has_every_key_its_default_and_its_choices(heading):
    wanted, rows = keys(headings()[heading]), tables(PARAMETERS)[heading]
    page = {row[0].strip("`"): row for row in rows}
    assert set(page) == set(wanted) and len(page) == len(rows)
    for key, values in defaults(heading).items():
        left = page[key][3]
        for value in sorted(values, key=len, reverse=True):
            assert value in left, f"{key}: {page[key][3]} instead of {values}"
            left = left.replace(value, "")
        assert not re.search(r"\w", left), f"{key}: {page[key][3]} instead of {values}"
    missing = {
        (key, choice)
        for key, fields in wanted.items()
        for field in fields
        for choice in choices(field.annotation)
        if f"`{choice}`" not in page[key][1] + page[key][2]
    }
    assert not missing


@cache
def known_keys() -> set[str]:
    """Every dotted key, from the root of params.yaml and from a section's own name on."""
    found = set()
    for heading, sections in headings().items():
        name = heading.rpartition(".")[2]
        parts = {"", *(key.rpartition(".")[0] for key in keys(sections))}
        for key in {*keys(sections), *parts}:
            full = f"{name}.{key}".rstrip(".")
            found |= {full, heading.rpartition(".")[0] + "." + full if "." in heading else full}
    return found


def is_key(span: str) -> bool:
    tops = {"profiles", "variants", *(heading.rpartition(".")[2] for heading in headings())}
    return bool(re.fullmatch(r"\w+(\.\w+)+", span)) and span.split(".")[0] in tops and not is_path(span)


def resolves(span: str) -> bool:
    first, *rest = span.split(".")
    if first not in ("profiles", "variants"):
        return span in known_keys()
    if rest[0] not in VALUES[first] and not rest[0].isupper():
        return False
    return len(rest) == 1 or ".".join([first, "NAME", *rest[1:]]) in known_keys()


@every_page
def test_every_key_of_params_exists(page):
    text = spans(page) + [
        word for line in commands(page) for word in re.findall(r"[+~]?((?:profiles|variants)\.[\w.]+)", line)
    ]
    assert not [span for span in text if is_key(span) and not resolves(span)]


@every_page
def test_a_command_sets_what_the_file_says_or_adds_it(page):
    """`-S key=value` fails on a key that params.yaml leaves to its default: that takes `++`."""
    missing = []
    for line in commands(page) + spans(page):
        for key in re.findall(r"-S '?((?:profiles|variants)\.[\w.]+)=", line):
            value = VALUES
            for step in key.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            if value is None:
                missing.append(key)
    assert not missing


@every_page
def test_every_stage_that_a_command_names_exists(page):
    names = product(DVC["stages"], ("", *(f"@{name}" for name in VALUES["variants"])))
    known = {stage + variant for stage, variant in names}
    asked = [re.match(r"dvc repro ([a-z_@0-9]+)$", text) for text in spans(page) + commands(page)]
    assert not [match[1] for match in asked if match and match[1] not in known]
