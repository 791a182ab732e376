"""params.yaml, checked once, before anything else happens.

The whole file is checked whenever any part of it is read, so a mistake in one section stops every stage before
a model loads; a stage is handed only the sections it asks for, which are the ones it declares in dvc.yaml.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from stages.core.process import memory
from stages.core.process.errors import UserError
from stages.core.settings import messages
from stages.core.settings.images import ImageProfile
from stages.core.settings.pretraining import Pretrain, PretrainDigits
from stages.core.settings.profiles import LanguageProfile
from stages.core.settings.section import Section
from stages.core.settings.variants import Variant

PARAMS = Path("params.yaml")
PROFILE = "SHARED_FFN_PROFILE"  # the environment variable of `make ... PROFILE=name`, which goes before the file's

# What the parser of YAML says -> what the line is told to lack.
UNREADABLE = {
    "could not find expected ':'": "a key ends with a colon and a space",
    "expected '<document start>'": "here or above a key lacks its colon or the space after it",
    "but found another document": "--- begins a second document, and one is needed",
    "expected <block end>": "indentation, a bracket or a quote is wrong here or above",
    "mapping values are not allowed here": "no key may be here: indentation, or the key above, is wrong",
}

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def _name(name: str) -> str:
    """The name, where DVC's stages and params, command lines and file systems take it as it is."""
    if not NAME.fullmatch(name):
        raise ValueError("a name is a letter, then letters, digits, _ and -, 64 in all at most")
    return name


Name = Annotated[str, AfterValidator(_name)]


def _task(profile: Any) -> str:
    """The kind of a profile: what it says as `task`, language where it says nothing."""
    return str(profile.get("task", "language") if isinstance(profile, dict) else getattr(profile, "task", "language"))


AnyProfile = Annotated[
    Annotated[LanguageProfile, Tag("language")] | Annotated[ImageProfile, Tag("image_classification")],
    Discriminator(_task),
]


class Params(Section):
    profile: str
    profiles: Annotated[dict[Name, AnyProfile], Field(min_length=1)]
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    pretrain: Pretrain
    pretrain_digits: PretrainDigits

    def studied(self, profile: str) -> dict[str, Variant]:
        """The variants that a profile does not leave out, in the file's order."""
        return {name: variant for name, variant in self.variants.items() if profile not in variant.skip}

    @model_validator(mode="after")
    def _names_are_apart(self):
        kept = {}
        for name in self.variants:
            if (other := kept.setdefault(name.lower(), name)) != name:
                raise ValueError(f"variants.{name}: variants.{other} has the same files where case does not count")
        return self

    @model_validator(mode="after")
    def _parts_agree(self):
        if self.profile not in self.profiles:
            raise ValueError(f"profile = {self.profile} is not one of {', '.join(self.profiles)}")
        if "original" not in self.variants or self.variants["original"].surgery.method != "none":
            raise ValueError("variants.original with surgery.method = none must be there: all else is relative to it")
        for name, variant in self.variants.items():
            if unknown := [skipped for skipped in variant.skip if skipped not in self.profiles]:
                raise ValueError(f"variants.{name}.skip = {unknown[0]} is not one of {', '.join(self.profiles)}")
        if self.variants["original"].skip:
            raise ValueError("variants.original.skip: all else is relative to it, so no profile leaves it out")
        if apart := list(self._not_aligned()):
            raise ValueError("\n".join(apart))
        return self

    def _not_aligned(self) -> Iterator[str]:
        """A line for every studied variant whose layers the profile does not align as it wants them."""
        profile = self.profiles[self.profile]
        for name, variant in self.studied(self.profile).items():
            alignment = getattr(variant.surgery, "alignment", "identity")
            if alignment not in ("identity", "cost", *profile.extract.sites):
                yield (
                    f"variants.{name}.surgery.alignment = {alignment} is not among "
                    f"profiles.{self.profile}.extract.sites = {', '.join(profile.extract.sites)}"
                )
            aligned = alignment != "identity" or variant.windows.choose == "forms"
            if aligned and variant.windows.size > profile.correlate.reach:
                key = "sizes" if hasattr(variant.windows, "sizes") else "size"
                yield (
                    f"variants.{name}.windows.{key} = {getattr(variant.windows, key)} exceeds "
                    f"profiles.{self.profile}.correlate.reach = {profile.correlate.reach}, "
                    "so its layers could not be aligned"
                )


def load(path: Path = PARAMS) -> Params:
    """All of params.yaml, checked, with the profile that the environment names, if any, as `profile`.

    Raises UserError with one line for each mistake.
    """
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return _parsed(path.read_text(encoding="utf-8"), os.environ.get(PROFILE))
    except UserError:
        raise
    except ValidationError as error:
        raise UserError("\n       ".join(f"{path}: {line}" for line in messages.lines(error, Params))) from error
    except DuplicateKeyError as error:
        key = error.problem.split('"')[1]
        raise UserError(f"{path}: line {error.problem_mark.line + 1}: {key} is there already; give it once") from error
    except MarkedYAMLError as error:
        # A key without its colon is noticed where the next one begins.
        begun = error.context == "while scanning a simple key"
        mark = error.context_mark if begun or error.problem_mark is None else error.problem_mark
        said = next((said for begin, said in UNREADABLE.items() if error.problem.startswith(begin)), error.problem)
        raise UserError(f"{path}: line {mark.line + 1}: not valid YAML: {said}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: not UTF-8") from error
    except ReaderError as error:
        raise UserError(f"{path}: character {error.character:#x}, which YAML does not allow") from error
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=1)
def _parsed(text: str, profile: str | None) -> Params:
    """A stage asks for several sections: the same text is parsed and checked once."""
    from ruamel.yaml import YAML

    values = YAML(typ="safe", pure=True).load(text)
    if profile and isinstance(values, dict):
        known = values.get("profiles")
        if isinstance(known, dict) and profile not in known:
            raise UserError(f"PROFILE = {profile}: params.yaml has {', '.join(map(str, known))}")
        values["profile"] = profile
    return Params.model_validate(values)


def anchors(path: Path = PARAMS) -> list[int]:
    """The lines of params.yaml with a YAML anchor: `dvc exp run -S` changes nothing there, and does not say so."""
    from ruamel.yaml import YAML
    from ruamel.yaml.tokens import AnchorToken

    found = YAML(typ="safe", pure=True).scan(path.read_text(encoding="utf-8"))
    return [token.start_mark.line + 1 for token in found if isinstance(token, AnchorToken)]


def section(profile: str, name: str) -> Section:
    """One section of a profile, `profiles.<profile>.<name>`."""
    found = getattr(load().profiles[profile], name)
    if found is not None:  # a section that means nothing for the task
        memory.note(f"profiles.{profile}.{name}", found)
    return found


def variant(key: str, name: str) -> Section:
    """One section of a variant, `variants.<key>.<name>`."""
    return getattr(load().variants[key], name)


def variants(profile: str) -> dict[str, Variant]:
    """Every variant that a profile studies, in the file's order."""
    return load().studied(profile)


def pretrain() -> Pretrain:
    """The section `pretrain`."""
    return load().pretrain


def pretrain_digits() -> PretrainDigits:
    """The section `pretrain_digits`."""
    return load().pretrain_digits
