"""What every part of params.yaml has in common."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator of random numbers takes
Several = Annotated[int, Field(ge=2, lt=2**31)]
Sequence = Several  # tokens, of which the first is only read
Rate = Annotated[float, Field(gt=0, lt=1)]


def _once(values: list) -> list:
    """The list, unless something is in it twice."""
    if len(set(values)) < len(values):
        raise ValueError("each may be there once")
    return values


Once = AfterValidator(_once)  # of a list


def _written(text: str) -> str:
    """The text, unless nothing but spaces is in it."""
    if not text.strip():
        raise ValueError("text is needed")
    return text


Text = Annotated[str, AfterValidator(_written)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and lossy conversions are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        """The value, unless a text has half of a character, "\\ud800": YAML takes it, but nothing can print it."""
        texts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text) for text in texts):
            raise ValueError("half of a character (a surrogate) is no text")
        return value


def whole_sequence(section: Section, length: str) -> Section:
    """The section, unless its `max_tokens` make no whole sequence."""
    least = getattr(section, length)
    if section.max_tokens is not None and section.max_tokens < least:
        raise ValueError(f"max_tokens = {section.max_tokens} is less than {length} = {least}")
    return section
