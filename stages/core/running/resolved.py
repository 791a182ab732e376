"""params.yaml as text with every default: the values that differ from it, and the defaults as comments."""

import copy
import json
import re
import textwrap
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from stages.core.settings.params import Params
from stages.core.settings.section import Section

TAGS = ("kind", "choose", "method")  # keys that say which kind of section it is; they are shown first
GLUE = "\0"  # stands for a space at which no line may break
PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z][\w./-]*", re.IGNORECASE)


def text(found: Params, width: int = 120) -> str:
    """The active profile and the variants that run in it as YAML, in lines of at most `width` where words allow it.

    Without its comments it is a params.yaml of the same meaning. A variant whose comments are those of an earlier one
    names that one instead.
    """
    profile = found.profiles[found.profile]
    lines = [
        "# What runs: the values that differ from their defaults and, after #, the defaults.",
        f"profile: {found.profile}",
    ]
    lines += ["profiles:", f"  {found.profile}:"]
    said, rest = split(profile)
    for name, section in said.items():
        lines += _entry(f"    {name}: ", section, [inner(rest[name])] if name in rest else [], width)
    lines.append("variants:")
    seen: dict[tuple[str, ...], str] = {}
    for name, variant in found.variants.items():
        if found.profile in variant.skip:
            continue
        said, rest = ({key: part for key, part in parts.items() if key != "skip"} for parts in split(variant))
        notes = tuple(
            f"{part}: {inner(values) if isinstance(values, dict) else flow(values)}" for part, values in rest.items()
        )
        like = seen.setdefault(notes, name)
        lines += _entry(f"  {name}: ", said, list(notes) if like == name else [f"the rest as {like}"], width)
    return "\n".join(lines)


def split(found: Section) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a section that differ from their defaults, and the rest, both in the order of the fields.

    A value differs where leaving it out would change the section, or where it has no default.
    """
    whole = found.model_dump()
    said = copy.deepcopy(whole)

    def same() -> bool:
        try:
            return type(found).model_validate(said) == found
        except ValidationError:
            return False

    _leave_out(said, same)
    return _both(whole, said)


def _leave_out(part: dict[str, Any], same: Callable[[], bool]) -> None:
    """Remove from `part`, and from mappings in it, every key that is not needed for `same()` to hold."""
    for key in list(part):
        value = part.pop(key)
        if not same():
            part[key] = value
            if isinstance(value, dict):
                _leave_out(value, same)


def _both(whole: dict[str, Any], said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    ours, rest = {}, {}
    for key, value in sorted(whole.items(), key=lambda item: item[0] not in TAGS):
        if key not in said:
            rest[key] = value
        elif isinstance(value, dict):
            ours[key], left = _both(value, said[key])
            rest |= {key: left} if left else {}
        else:
            ours[key] = value
    return ours, rest


def flow(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return f"{{{inner(value)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    if isinstance(value, float):
        digits, power, exponent = repr(value).partition("e")
        return f"{digits}{'' if '.' in digits else '.0'}{power}{exponent}"  # YAML 1.1 asks for the point
    return json.dumps(value, ensure_ascii=False)


def inner(values: dict[str, Any]) -> str:
    """A mapping in YAML's flow style without its braces."""
    return ", ".join(f"{flow(key)}:{GLUE}{flow(value)}" for key, value in values.items())


def _entry(key: str, value: dict[str, Any], notes: list[str], width: int) -> list[str]:
    """The lines of a key with its value, then a comment for each note."""
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    lines = _wrap(key + flow(value), "", indent + "  ", width)
    if len(notes) == 1 and len(f"{lines[-1]}  # {notes[0]}") <= width:
        return [*lines[:-1], f"{lines[-1]}  # {notes[0].replace(GLUE, ' ')}"]
    return lines + [line for note in notes for line in _wrap(note, f"{indent}# ", f"{indent}#   ", width)]


def _wrap(line: str, first: str, further: str, width: int) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False}
    lines = textwrap.wrap(line, width, initial_indent=first, subsequent_indent=further, **options)
    return [line.replace(GLUE, " ") for line in lines]
