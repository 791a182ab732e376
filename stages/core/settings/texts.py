"""What a profile may say about text: to model, to classify, to sum up."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.settings import splits
from stages.core.settings.section import Count, Natural, Section


class Stories(Section):
    """Text of the project's own grammar: one seed and a number of stories for each split."""

    kind: Literal["stories"]
    seed: Natural
    train: Count
    validation: Count
    test: Count


class Loaded(Section):
    """Rows as `datasets.load_dataset` takes them: a hub name, or parquet, json or text with `data_files`."""

    kind: Literal["dataset"]
    path: str
    name: str | None = None
    revision: str | None = None
    data_files: dict[str, str] | None = None

    @model_validator(mode="after")
    def _splits_share_no_row(self):
        named = {name: getattr(self, name, None) for name in ("train", "validation", "test")}
        splits.check(named, self.data_files)
        return self


class Dataset(Loaded):
    """Text to model."""

    column: str = "text"
    train: str
    validation: str
    test: str


class Prepare(Section):
    source: Annotated[Stories | Dataset, Field(discriminator="kind")]


class Reviews(Section):
    """Reviews of the project's own grammar, half of them positive; a number of rows for each split."""

    kind: Literal["reviews"]
    seed: Natural
    train: Annotated[int, Field(ge=4)]
    test: Annotated[int, Field(ge=4)]


class LabelledDataset(Loaded):
    """Labelled text; labels are whole numbers from 0."""

    text: str = "text"
    label: str = "label"
    train: str
    test: str


class ReviewSet(Section):
    """Which labelled texts are taken, and in what form a model reads them.

    A text is cut to its head or tail so that it fits into `template` (where {text} stands) within `max_tokens`.
    """

    source: Annotated[Reviews | LabelledDataset, Field(discriminator="kind")]
    max_train: Count | None = None
    max_test: Count | None = None
    seed: Natural = 0
    max_tokens: Annotated[int, Field(ge=2)]
    keep: Literal["head", "tail"] = "head"
    template: str = "{text}"

    @model_validator(mode="after")
    def _template_takes_a_text(self):
        if self.template.count("{text}") != 1:
            raise ValueError(f"template = {self.template!r} must hold {{text}} exactly once")
        return self


class Articles(Section):
    """Brief stories of the project's own grammar, each with a summary: a seed and how many for each split."""

    kind: Literal["articles"]
    seed: Natural
    train: Count
    test: Count

    @property
    def most(self) -> int:
        """How many test pairs there are."""
        return self.test


class ArticleDataset(Loaded):
    """Articles with summaries; without `train` nothing can be trained."""

    article: str = "article"
    summary: str = "highlights"
    train: str | None = None
    test: str

    @property
    def most(self) -> int | None:
        """How many test pairs there are at most, where params.yaml says so."""
        return splits.most_rows(self.test)


class ArticlePairs(Section):
    source: Annotated[Articles | ArticleDataset, Field(discriminator="kind")]
