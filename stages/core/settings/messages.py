"""Mistakes in params.yaml in the file's own terms: the key, its value, what is allowed.

pydantic finds the mistakes. Its own sentences speak of its types, which no reader of the file knows.
"""

from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError

from stages.core.settings.section import Section

Members = dict[str, Any]  # what a value may be: pydantic's name for it -> its type

MAPPING = "keys with values are needed, as {{key: value}}"
DEFAULTS = "{} leaves it at its defaults"
LONGEST = 80  # characters of a value that are shown
WORDS = {"None": "null", "True": "true", "False": "false"}  # Python's -> YAML's

# pydantic's type of a mistake -> what is said of it. In braces: what pydantic says beside the type.
SENTENCES = {
    "missing": "missing; {remedy}",
    "invalid_key": "a key must be text",
    "bool_type": "true or false is needed",
    "int_type": "a whole number is needed",
    "float_type": "a number is needed",
    "int_parsing_size": "a smaller number is needed",
    "finite_number": "a finite number is needed",
    "string_type": "text is needed",
    "list_type": "a list is needed, as [a, b]",
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "none_required": "only null is allowed",
    "greater_than": "more than {gt} is needed",
    "greater_than_equal": "at least {ge} is needed",
    "less_than": "less than {lt} is needed",
    "less_than_equal": "at most {le} is needed",
    "too_short": "at least {min_length} entry is needed",
    "literal_error": "{expected} is needed",
    "extra_forbidden": "unknown key{guess}; there are {known}",
    "union_tag_invalid": "{known} is needed",
    "union_tag_not_found": "missing; {known} is needed",
    "value_error": "{error}",
}
TARGET = "target_parameters"  # the one key whose value may be of several kinds that no other key tells apart
TARGETS = "a number of stored parameters, a share between 0 and 1, or windows as {size: 4, rank: 8} are needed"
OTHER = "this value is not allowed"
SILENT = "default_factory_not_called"  # a default that depends on a value with a mistake of its own


def lines(error: ValidationError, root: type[Section]) -> list[str]:
    """A line for each mistake in a file that should have been a `root`."""
    told = []
    for mistake in error.errors():
        if mistake["type"] != SILENT:
            # A check of the whole file may find several mistakes, a line each; a name may have a line break.
            told += [_line(mistake, root)] if mistake["loc"] else _line(mistake, root).splitlines()
    return list(dict.fromkeys(line for line in told if line))


def _line(mistake: dict[str, Any], root: type[Section]) -> str:
    """The line of one mistake; empty where another mistake says the same better."""
    kind, value, said = mistake["type"], mistake["input"], dict(mistake.get("ctx", {}))
    steps, members, nullable = _followed(mistake["loc"], root)
    if steps[-1:] == [TARGET] and kind not in ("missing", "extra_forbidden"):
        # Of keys with values pydantic also says that they are no number.
        return "" if isinstance(value, dict) else f"{'.'.join(steps)} = {_short(value)}: {TARGETS}"
    if kind == "extra_forbidden":
        known = [name for member in members.values() for name in member.model_fields]
        close = get_close_matches(steps[-1], known, 1)
        said = {"known": ", ".join(known), "guess": f" (is {close[0]} meant?)" if close else ""}
    elif kind.startswith("union_tag"):
        key = said["discriminator"].strip("'_()")  # a key, or the function that reads it
        steps, value, said = [*steps, key], value.get(key, {}), {"known": _either(list(members))}
    elif kind == "missing":
        said = {"remedy": DEFAULTS if _says_nothing(members) else "it has no default"}
    elif mistake["loc"][-1:] == ("[key]",) and kind == "string_type":
        kind = "invalid_key"
    elif kind == "literal_error":
        said = {"expected": said["expected"].replace("'", "")}
    shown = "" if isinstance(value, dict) or not steps else f" = {_short(value)}"
    bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in said.items()}
    sentence = SENTENCES.get(kind, OTHER).format_map(bounds)
    if value is None and SENTENCES.get(kind) == MAPPING and _says_nothing(members):
        sentence += f"; {DEFAULTS}"
    if nullable and kind != "missing":
        sentence = sentence.replace(" is needed", " or null is needed")
    return f"{'.'.join(steps)}{shown}: {sentence}".removeprefix(": ")


def _followed(path: tuple[str | int, ...], root: type[Section]) -> tuple[list[str], Members, bool]:
    """The steps of a mistake's path that are the file's, what the value at its end may be, and whether also null.

    For an unknown key: what the value that holds it may be. pydantic's own steps are `[key]`, for a mistake in a name,
    and the name of the member of a union below it.
    """
    steps, members, nullable = [], {"": root}, False
    for step in path:
        if step == "[key]":
            continue
        if len(members) > 1:
            members = {step: members[step]}
            continue
        steps.append(str(step))
        (kind,) = members.values()
        if isinstance(kind, type) and issubclass(kind, Section):
            field = kind.model_fields.get(step)
            members = _members(field.annotation) if field else members
            nullable = field is not None and NoneType in get_args(field.annotation)
        else:
            members, nullable = _members(get_args(kind)[-1]), False  # of a list or dict
    return steps, members, nullable


def _members(kind: Any) -> Members:
    """What a value of a type may be, null left out."""
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        tags = [note.tag for note in notes if isinstance(note, Tag)]
        return {tags[0]: kind} if tags else _members(kind)
    if get_origin(kind) in (Union, UnionType):
        members = [member for part in get_args(kind) if part is not NoneType for member in _members(part).items()]
        return dict(members)
    return {_tag(kind): kind}


def _tag(kind: Any) -> str:
    """pydantic's name for a member of a union: the word that the file chooses it by, or one of its own."""
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        return f"constrained-{getattr(kind, '__name__', kind)}"
    choices = [get_args(f.annotation) for f in kind.model_fields.values() if get_origin(f.annotation) is Literal]
    return next((words[0] for words in choices if len(words) == 1), kind.__name__)


def _says_nothing(members: Members) -> bool:
    """Whether {} is a value: a section all of whose keys have defaults."""
    sections = [kind for kind in members.values() if isinstance(kind, type) and issubclass(kind, Section)]
    return len(sections) == 1 and not any(field.is_required() for field in sections[0].model_fields.values())


def _either(words: list[str]) -> str:
    """Words as a sentence lists them: a, b or c."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _short(value: Any) -> str:
    """A value as YAML writes it, or its beginning."""
    shown = WORDS.get(repr(value), repr(value))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 4]} ..."
