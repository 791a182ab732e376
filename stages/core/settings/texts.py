"""What a profile may say about text: to model, to classify, to sum up."""

import codecs
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.settings import splits
from stages.core.settings.section import Count, Section, Seed, Sequence, Text

ENCODED = ("text", "json", "csv")  # what `datasets` reads with an encoding
Rows = Annotated[int, Field(ge=4, lt=2**31)]  # labelled texts: two of each label, of which there are two or more
PACKAGED = (*ENCODED, "parquet", "arrow", "imagefolder")  # what `datasets` reads from files alone


class Stories(Section):
    """Text of the project's own grammar: one seed and a number of stories for each split."""

    kind: Literal["stories"]
    seed: Seed = Field(description="of the grammar's choices")
    train: Count = Field(description="stories to train on")
    validation: Count = Field(description="stories to choose windows and states by")
    test: Count = Field(description="stories to measure on")

    @property
    def most(self) -> int:
        """How many test stories there are."""
        return self.test


class Loaded(Section):
    """Rows as `datasets.load_dataset` takes them: a hub name, or parquet, json, csv or text with `data_files`.

    `encoding` is that of the files, UTF-8 where None; parquet has none.
    """

    kind: Literal["dataset"]
    path: Text = Field(description="a hub id; parquet, json or text with data_files")
    name: Text | None = Field(None, description="the data set's configuration")
    revision: Text | None = Field(None, description="a branch, tag or commit of the hub; null is its newest")
    data_files: dict[str, str] | None = Field(None, description="a file (best below data/local/text) for each split")
    encoding: str | None = Field(None, description="of files that are not UTF-8: latin-1, utf-16, ...")

    def cut(self, split: str) -> splits.Cut:
        """A split of this data set."""
        return splits.Cut(split, self.data_files, self.path)

    @model_validator(mode="after")
    def _the_encoding_is_known(self):
        if self.encoding is not None:
            if self.path not in ENCODED:
                raise ValueError(f"encoding = {self.encoding}: path must be {', '.join(ENCODED)}, not {self.path}")
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(f"encoding = {self.encoding} is none that Python knows; write utf-8 or latin-1")
        return self

    @model_validator(mode="after")
    def _splits_are_there_and_share_no_row(self):
        named = {name: getattr(self, name, None) for name in splits.NAMES}
        splits.check(named, self.data_files, self.path)
        for name, split in named.items():
            for file in [] if split is None or self.data_files is None else splits.names(split):
                if file not in self.data_files:
                    raise ValueError(f"{name} = {split}: data_files has {', '.join(self.data_files)}, no {file}")
        return self

    @model_validator(mode="after")
    def _files_are_named(self):
        if self.path in PACKAGED and not self.data_files:
            raise ValueError(f"path = {self.path} needs data_files, a file for each split")
        return self


class Dataset(Loaded):
    """Text to model."""

    column: str = Field("text", description="the column with the text")
    train: str = Field("train", description="rows to train on, as train, train[:80%] or train[100:200]")
    validation: str = Field("validation", description="rows to choose windows and states by")
    test: str = Field("test", description="rows to measure on")

    @property
    def most(self) -> int | None:
        """How many test rows there are at most, where params.yaml says so."""
        return splits.most_rows(self.test)


class Mingled(Section):
    """Stories of other plots: sentences of the project's own grammar in an order that none of its plots has."""

    kind: Literal["mingled_stories"]
    seed: Seed = Field(description="of the grammar's choices")
    test: Count = Field(description="stories to measure on")


class OtherDataset(Loaded):
    """A text of another kind."""

    column: str = Field("text", description="the column with the text")
    test: str = Field("test", description="rows to measure on")


class Other(Section):
    """A second text, on which perplexity is taken too and nothing is trained or chosen."""

    source: Annotated[Mingled | OtherDataset, Field(discriminator="kind")]


class Prepare(Section):
    """Which text is modelled. `other` is a text of another kind: what a study costs where nothing was calibrated."""

    source: Annotated[Stories | Dataset, Field(discriminator="kind")]
    other: Other | None = Field(None, description="a second text to take perplexity on; null: none")

    @model_validator(mode="after")
    def _the_other_text_is_another(self):
        one, two = self.source, self.other and self.other.source
        if isinstance(one, Dataset) and isinstance(two, OtherDataset):
            # Files are what they are, whatever a data set calls them; without any, the data set's name counts.
            same = one.data_files or (one.path, one.name, None) == (two.path, two.name, two.data_files)
            for name in splits.NAMES if same else ():
                split = getattr(one, name)
                if splits.share(one.cut(split), two.cut(two.test)):
                    raise ValueError(
                        f"other.source.test = {two.test} and source.{name} = {split} share rows: the other text must "
                        "be another"
                    )
        return self


class Reviews(Section):
    """Reviews of the project's own grammar, half of them positive; a number of rows for each split."""

    kind: Literal["reviews"]
    seed: Seed = Field(description="of the grammar's choices")
    train: Rows = Field(description="reviews to train on")
    test: Rows = Field(description="reviews to measure on")


class LabelledDataset(Loaded):
    """Labelled text; labels are whole numbers from 0."""

    text: str = Field("text", description="the column with the text")
    label: str = Field("label", description="the column with the label")
    train: str = Field("train", description="rows to train on")
    test: str = Field("test", description="rows to measure on")


class ReviewSet(Section):
    """Which labelled texts are taken, and in what form a model reads them.

    A text is cut to its head or tail so that it fits into `template` (where {text} stands) within `max_tokens`.
    """

    source: Annotated[Reviews | LabelledDataset, Field(discriminator="kind")]
    max_train: Rows | None = Field(None, description="rows to train on, of every label alike; null takes all")
    max_test: Rows | None = Field(None, description="rows to measure on, of every label alike; null takes all")
    seed: Seed = Field(0, description="of the choice of rows")
    max_tokens: Sequence = Field(512, description="tokens of a text in its template")
    keep: Literal["head", "tail"] = Field("tail", description="which end of a text that is too long")
    template: str = Field("{text}\nThe sentiment of this review is", description="where {text} stands once")

    @model_validator(mode="after")
    def _template_takes_a_text(self):
        if self.template.count("{text}") != 1:
            raise ValueError(f"template = {self.template!r} must hold {{text}} exactly once")
        return self


class Articles(Section):
    """Brief stories of the project's own grammar, each with a summary: a seed and how many for each split."""

    kind: Literal["articles"]
    seed: Seed = Field(description="of the grammar's choices")
    train: Count = Field(description="pairs to train on")
    test: Count = Field(description="pairs to measure on")

    @property
    def most(self) -> int:
        """How many test pairs there are."""
        return self.test


class ArticleDataset(Loaded):
    """Articles with summaries; without `train` nothing can be trained."""

    article: str = Field("article", description="the column with the article")
    summary: str = Field("highlights", description="the column with the summary")
    train: str | None = Field(None, description="rows to train on; null is none")
    test: str = Field("test", description="rows to measure on")

    @property
    def most(self) -> int | None:
        """How many test pairs there are at most, where params.yaml says so."""
        return splits.most_rows(self.test)


class ArticlePairs(Section):
    """Which articles are summed up."""

    source: Annotated[Articles | ArticleDataset, Field(discriminator="kind")]
