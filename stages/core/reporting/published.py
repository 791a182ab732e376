"""Figures that others published, as data/published.yaml holds them: each with its source and its protocol."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from stages.core.process.errors import UserError
from stages.core.settings.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Figure(Section):
    """One model's figures; `variant` is what this project calls the same model, where it has one.

    parameters_share: of the original's parameters.
    """

    name: str
    variant: str | None = None
    parameters_millions: Positive | None = None
    parameters_share: Share | None = None
    perplexity: Positive | None = None
    latency_ms: Positive | None = None
    images_per_second: Positive | None = None
    accuracy: Share | None = None
    rouge1: Share | None = None
    rouge2: Share | None = None
    rougeL: Share | None = None


class Source(Section):
    """Figures taken with one protocol: they may be compared with each other."""

    title: str
    protocol: str
    figures: Annotated[list[Figure], Field(min_length=1)]


class Reproducible(Source):
    """A source whose protocol this project can follow, on the model of the hub that it used."""

    model: str

    def of(self, variant: str) -> Figure | None:
        """What was published about a variant of this project."""
        return next((figure for figure in self.figures if variant in (figure.variant, figure.name)), None)


class Published(Section):
    """seeds: figures of the research notes. elsewhere, images: of others, on language models and image classifiers."""

    seeds: Reproducible
    elsewhere: list[Source]
    images: list[Source]


def read(path: Path) -> Published:
    """The file's content. Raises UserError with the mistakes where it is not well formed."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return Published.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, YAMLError, ValidationError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
