"""Where text comes from: the project's own grammar, or any data set that `datasets` can load."""

from pathlib import Path

from stages.core.errors import UserError
from stages.core.profiles import ArticleDataset, Articles, Dataset, Stories
from stages.core.stories import stories, summarised

# Each split of the generated text has a seed of its own, and pretraining (split "pretrain") one more.
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3, "pretrain": 4, "article train": 5, "article test": 6}


def rows(source: Stories | Dataset, split: str, lexicon: Path) -> list[str]:
    """The rows of text of one split (`train`, `validation` or `test`). Raises UserError where there are none."""
    if isinstance(source, Stories):
        return generated(lexicon, source.seed, split, getattr(source, split))
    (text,) = _columns(source, split, [source.column], "prepare.source")
    if not any(row.strip() for row in text):
        raise UserError(f"split {getattr(source, split)!r} of prepare.source has no text in {source.column!r}")
    return text


def pairs(source: Articles | ArticleDataset, split: str, lexicon: Path) -> list[tuple[str, str]]:
    """(article, summary) pairs of one split (`train` or `test`; none where a data set's `train` is null).

    Raises UserError where an article or a summary has no text.
    """
    if isinstance(source, Articles):
        seed = 10 * source.seed + SPLIT_SEEDS[f"article {split}"]
        try:
            return summarised(_words(lexicon), seed, getattr(source, split))
        except ValueError as error:
            raise UserError(f"{lexicon}: {error}") from error
    if getattr(source, split) is None:
        return []
    names = [source.article, source.summary]
    found, key = list(zip(*_columns(source, split, names, "articles.source"))), getattr(source, split)
    for number, pair in enumerate(found):
        for name, text in zip(names, pair):
            if not (text or "").strip():
                raise UserError(f"row {number} of split {key!r} of articles.source: {name!r} is empty")
    return found


def _columns(source: Dataset | ArticleDataset, split: str, names: list[str], key: str) -> list[list[str]]:
    """Some columns of a split, as `datasets` loads it."""
    from datasets import load_dataset

    try:
        table = load_dataset(
            source.path,
            source.name,
            revision=source.revision,
            data_files=source.data_files,
            split=getattr(source, split),
        )
        return [list(table[name]) for name in names]
    except Exception as error:  # datasets raises some twenty kinds, all of them about what the user named
        raise UserError(
            f"cannot load split {getattr(source, split)!r}, columns {', '.join(map(repr, names))} of {key} "
            f"(path = {source.path!r}, name = {source.name!r}, data_files = {source.data_files!r}): "
            f"{' '.join(str(error).split())[:400]}"
        ) from error


def generated(lexicon: Path, seed: int, split: str, count: int) -> list[str]:
    """`count` stories of one split of the generated corpus."""
    try:
        return stories(_words(lexicon), 10 * seed + SPLIT_SEEDS[split], count)
    except ValueError as error:
        raise UserError(f"{lexicon}: {error}") from error


def _words(lexicon: Path) -> dict:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(lexicon.read_text(encoding="utf-8"))
