"""Where text comes from: the project's own grammar, or any data set that `datasets` can load."""

from pathlib import Path

from stages.core.process import hub
from stages.core.process.errors import UserError
from stages.core.settings.texts import ArticleDataset, Articles, Dataset, LabelledDataset, Loaded, Reviews, Stories
from stages.core.text.stories import stories, summarised

# Each split of the generated text has a seed of its own, and pretraining (split "pretrain") one more.
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3, "pretrain": 4, "article train": 5, "article test": 6}


def rows(source: Stories | Dataset, split: str, lexicon: Path) -> list[str]:
    """The rows of text of one split (`train`, `validation` or `test`). Raises UserError where there are none."""
    if isinstance(source, Stories):
        return generated(lexicon, source.seed, split, getattr(source, split))
    text = _columns(source, split, "prepare", source.column)[0]
    if not any(row.strip() for row in text):
        raise UserError(f"split {getattr(source, split)!r} of prepare.source has no text in {source.column!r}")
    return text


def pairs(source: Articles | ArticleDataset, split: str, lexicon: Path, summaries: Path) -> list[tuple[str, str]]:
    """(article, summary) pairs of one split (`train` or `test`; none where a data set's `train` is null).

    Raises UserError where an article or a summary has no text.
    """
    if isinstance(source, Articles):
        seed = 10 * source.seed + SPLIT_SEEDS[f"article {split}"]
        try:
            return summarised(_yaml(lexicon), _yaml(summaries), seed, getattr(source, split))
        except ValueError as error:
            raise UserError(f"{summaries}, {lexicon}: {error}") from error
    if getattr(source, split) is None:
        return []
    names = [source.article, source.summary]
    found, key = list(zip(*_columns(source, split, "articles", *names))), getattr(source, split)
    for number, pair in enumerate(found):
        for name, text in zip(names, pair):
            if not (text or "").strip():
                raise UserError(f"row {number} of split {key!r} of articles.source: {name!r} is empty")
    return found


def labelled(source: Reviews | LabelledDataset, split: str, lexicon: Path, reviews: Path) -> list[tuple[str, int]]:
    """Texts with their labels of one split (`train` or `test`). Raises UserError where they cannot be had."""
    if isinstance(source, Reviews):
        own = _yaml(reviews)
        told = []
        for label, plot in enumerate(("negative", "positive")):
            words = {**_yaml(lexicon), "plots": {plot: own["plots"][plot]}}
            seed = 10 * source.seed + SPLIT_SEEDS[split]
            told.append([(text, label) for text in _told(reviews, words, f"reviews/{seed}/{label}", source, split)])
        return [row for pair in zip(*told) for row in pair]
    texts, labels = _columns(source, split, "reviews", source.text, source.label)
    for row, (text, label) in enumerate(zip(texts, labels)):
        if not isinstance(text, str) or not isinstance(label, int):
            raise UserError(
                f"row {row} of split {getattr(source, split)!r} of reviews.source needs a text in {source.text!r} and "
                f"a whole number in {source.label!r}, not {type(text).__name__} and {type(label).__name__}"
            )
    return list(zip(texts, labels))


def generated(lexicon: Path, seed: int, split: str, count: int) -> list[str]:
    """`count` stories of one split of the generated corpus."""
    try:
        return stories(_yaml(lexicon), 10 * seed + SPLIT_SEEDS[split], count)
    except ValueError as error:
        raise UserError(f"{lexicon}: {error}") from error


def _told(path, words, seed, source, split):
    try:
        return stories(words, seed, getattr(source, split) // 2)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _yaml(path: Path) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def _columns(source: Loaded, split: str, section: str, *columns: str) -> list[list]:
    """Columns of one split of a data set, as lists."""
    if not source.data_files:
        hub.settle()
    from datasets import load_dataset

    try:
        table = load_dataset(
            source.path,
            source.name,
            revision=source.revision,
            data_files=source.data_files,
            split=getattr(source, split),
        )
        return [list(table[column]) for column in columns]
    except Exception as error:  # datasets raises some twenty kinds, all of them about what the user named
        raise UserError(
            f"cannot load split {getattr(source, split)!r}, column {' and '.join(map(repr, columns))} of "
            f"{section}.source (path = {source.path!r}, name = {source.name!r}, data_files = {source.data_files!r}): "
            f"{' '.join(str(error).split())[:400]}. Profile small needs no network."
        ) from error
