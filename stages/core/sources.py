"""Where text comes from: the project's own grammar, or any data set that `datasets` can load."""

from pathlib import Path

from stages.core.errors import UserError
from stages.core.profiles import Dataset, Stories
from stages.core.stories import stories

# Each split of the generated text has a seed of its own, and pretraining (split "pretrain") one more.
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3, "pretrain": 4}


def rows(source: Stories | Dataset, split: str, lexicon: Path) -> list[str]:
    """The rows of text of one split (`train`, `validation` or `test`). Raises UserError where there are none."""
    if isinstance(source, Stories):
        return generated(lexicon, source.seed, split, getattr(source, split))
    from datasets import load_dataset

    try:
        table = load_dataset(
            source.path,
            source.name,
            revision=source.revision,
            data_files=source.data_files,
            split=getattr(source, split),
        )
        text = list(table[source.column])
    except Exception as error:  # datasets raises some twenty kinds, all of them about what the user named
        raise UserError(
            f"cannot load split {getattr(source, split)!r}, column {source.column!r} of prepare.source "
            f"(path = {source.path!r}, name = {source.name!r}, data_files = {source.data_files!r}): "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    if not any(row.strip() for row in text):
        raise UserError(f"split {getattr(source, split)!r} of prepare.source has no text in {source.column!r}")
    return text


def generated(lexicon: Path, seed: int, split: str, count: int) -> list[str]:
    """`count` stories of one split of the generated corpus."""
    from ruamel.yaml import YAML

    words = YAML(typ="safe", pure=True).load(lexicon.read_text(encoding="utf-8"))
    try:
        return stories(words, 10 * seed + SPLIT_SEEDS[split], count)
    except ValueError as error:
        raise UserError(f"{lexicon}: {error}") from error
