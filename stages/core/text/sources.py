"""Where text comes from: the project's own grammar, or any data set that `datasets` can load."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.core.process import hub
from stages.core.process.errors import UserError
from stages.core.settings import splits
from stages.core.settings.texts import (
    ArticleDataset,
    Articles,
    Dataset,
    LabelledDataset,
    Loaded,
    Mingled,
    OtherDataset,
    Reviews,
    Stories,
)
from stages.core.text.stories import mingled, stories, summarised

# Each split of the generated text has a seed of its own, and pretraining (split "pretrain") one more.
SPLIT_SEEDS = {"train": 1, "validation": 2, "test": 3, "pretrain": 4, "article train": 5, "article test": 6, "other": 7}


def rows(source: Stories | Dataset, split: str, lexicon: Path) -> list[str]:
    """The rows of text of one split (`train`, `validation` or `test`). Raises UserError where there are none."""
    if isinstance(source, Stories):
        return generated(lexicon, source.seed, split, getattr(source, split))
    return _loaded(source, split, "prepare")


def other_rows(source: Mingled | OtherDataset, lexicon: Path, first: Stories | Dataset | None = None) -> list[str]:
    """The rows of the other text, on which perplexity is taken beside the test split. Raises UserError as `rows`.

    first: the source of the splits, with which it may share no row.
    """
    if isinstance(source, Mingled):
        return generated(lexicon, source.seed, "other", source.test, mingled)
    if isinstance(first, Dataset):
        _refuse_shared_with(first, source)
    return _loaded(source, "test", "prepare.other")


def _loaded(source: Dataset | OtherDataset, split: str, section: str) -> list[str]:
    """The rows of text of one split of a data set, at least one of which has text."""
    text = _texts(_columns(source, split, section, source.column)[0], source, split, section, source.column)
    if not any(row.strip() for row in text):
        raise UserError(f"split {getattr(source, split)!r} of {section}.source has no text in {source.column!r}")
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
    columns = _columns(source, split, "articles", *names)
    found = list(zip(*(_texts(texts, source, split, "articles", name) for name, texts in zip(names, columns))))
    for number, pair in enumerate(found):
        for name, text in zip(names, pair):
            if not text.strip():
                raise UserError(f"{place(number, source, split, 'articles')}: {name!r} is empty")
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
        if not isinstance(text, str) or type(label) is not int:
            raise UserError(
                f"{place(row, source, split, 'reviews')} needs a text in {source.text!r} and "
                f"a whole number in {source.label!r}, not {type(text).__name__} and {type(label).__name__}"
            )
    return list(zip(_texts(texts, source, split, "reviews", source.text), labels))


def generated(
    lexicon: Path, seed: int, split: str, count: int, tell: Callable[[dict, int, int], list[str]] = stories
) -> list[str]:
    """`count` stories of one split of the generated corpus, by `stories` or as `tell` tells them."""
    try:
        return tell(_yaml(lexicon), 10 * seed + SPLIT_SEEDS[split], count)
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


def place(row: int, source: Loaded, split: str, section: str) -> str:
    """Where a row stands, in words."""
    return f"row {row} of split {getattr(source, split)!r} of {section}.source"


def _texts(values: list, source: Loaded, split: str, section: str, column: str) -> list[str]:
    """The values without a byte order mark. Raises UserError at the first that is no text, or text read as another's.

    UTF-16 without a mark reads as UTF-8 with a NUL beside every letter.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str):
            found = "null" if value is None else type(value).__name__
            raise UserError(f"{place(row, source, split, section)} needs a text in {column!r}, not {found}")
        if "\0" in value:
            raise UserError(
                f"{place(row, source, split, section)} has a NUL character in {column!r}: {_encoding(section)}"
            )
    return [value.removeprefix("\ufeff") for value in values]


def _encoding(section: str) -> str:
    return f"set {section}.source.encoding to that of the file (utf-16, utf-16-le, latin-1, cp1252, ...)"


@contextmanager
def _cache(source: Loaded) -> Iterator[dict[str, str]]:
    """Where `datasets` may keep what it makes of the files: a folder that is gone afterwards where they are local.

    Its own cache knows a file by path and time, not by what is in it.
    """
    from datasets import config

    if not _is_local(source):
        yield {}
        return
    root = Path(config.HF_DATASETS_CACHE)
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="files-", dir=root, ignore_cleanup_errors=True) as folder:
        yield {"cache_dir": folder}


def _asks_the_hub(source: Loaded) -> bool:
    """Whether the rows, or the name of a format, cannot be had from this machine alone."""
    files = (source.data_files or {}).values()
    if Path(source.path).expanduser().exists():
        return False
    return "/" in source.path or not files or any("://" in file for file in files)


def _is_local(source: Loaded) -> bool:
    """Whether the rows come from files of this machine: a folder, or files by the name of their format."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as formats

    if Path(source.path).expanduser().exists():
        return True
    return source.path in formats and not any("://" in file for file in (source.data_files or {}).values())


def _columns(source: Loaded, split: str, section: str, *columns: str) -> list[list]:
    """Columns of one split of a data set, as lists."""
    return taken(source, split, section, columns, lambda table: [list(table[column]) for column in columns])


def taken(
    source: Loaded, split: str, section: str, columns: Sequence[str], take: Callable[[Any], Any], whole: bool = False
) -> Any:
    """What `take` makes of one split of a data set, a `datasets.Dataset` that is gone afterwards.

    columns: what `take` reads, for the message. whole: whether files of other splits must be known too, as where labels
    are the names of folders. Raises UserError where the split cannot be had, with the cause in one line.
    """
    files, asked = source.data_files, getattr(source, split)
    if not whole and files and (names := {name for name, *_ in splits.parts(asked)}) <= files.keys():
        files = {name: files[name] for name in names}  # the others need not be read
    for name, file in (files or {}).items():
        if (named := Path(file).expanduser()).is_file() and named.stat().st_size == 0:
            raise UserError(f"{section}.source.data_files.{name} = {file}: the file is empty")
    if _asks_the_hub(source):
        hub.settle()
    from datasets import load_dataset

    try:
        with _cache(source) as cache:

            def load(split: str, files: dict[str, str] | None) -> Any:
                return load_dataset(
                    os.path.expanduser(source.path),
                    source.name,
                    revision=source.revision,
                    data_files=files and {name: os.path.expanduser(file) for name, file in files.items()},
                    split=split,
                    **cache,
                    **({"encoding": source.encoding} if source.encoding else {}),
                )

            _refuse_shared_rows(source, section, lambda name: len(load(name, source.data_files)))
            return take(load(asked, files))
    except UserError:
        raise
    except Exception as error:  # datasets raises some twenty kinds, all of them about what the user named
        raise UserError(
            f"cannot load split {asked!r}, column {' and '.join(map(repr, columns))} of "
            f"{section}.source (path = {source.path!r}, name = {source.name!r}, data_files = {source.data_files!r}): "
            f"{_cause(error, section)}{'. Profile small needs no network.' if _asks_the_hub(source) else ''}"
        ) from error


def _refuse_shared_rows(source: Loaded, section: str, count: Callable[[str], int]) -> None:
    """Raise UserError where splits share rows and only the number of rows tells.

    count: the rows of a split by its name.
    """
    named = {name: split for name in splits.NAMES if (split := getattr(source, name, None))}
    for (name, one), (other, two) in combinations(named.items(), 2):
        if splits.share_by_rows(source.cut(one), source.cut(two), lambda _, base: count(base)):
            raise UserError(
                f"params.yaml: {section}.source: {name} = {one} and {other} = {two} overlap, as there are "
                f"{max(map(count, splits.names(one)))} rows: no row may be in both"
            )


def _refuse_shared_with(first: Dataset, other: OtherDataset) -> None:
    """Raise UserError where the other text shares rows with a split and only the number of rows tells."""

    def count(cut: splits.Cut, name: str) -> int:
        source = first if cut.files == first.data_files else other
        return taken(source.model_copy(update=dict.fromkeys(splits.NAMES, name)), "test", "prepare", ["rows"], len)

    for name in splits.NAMES if first.data_files or first.path == other.path else ():
        split = getattr(first, name)
        if splits.share_by_rows(first.cut(split), other.cut(other.test), count):
            raise UserError(
                f"params.yaml: prepare.other.source.test = {other.test} and prepare.source.{name} = {split} share "
                "rows: the other text must be another"
            )


def _cause(error: Exception, section: str) -> str:
    """What went wrong, with what caused it, in a line; of text that cannot be decoded, the remedy."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    for link in chain:
        if isinstance(link, UnicodeError):
            return f"{link}; {_encoding(section)}"
    said = dict.fromkeys(" ".join((str(link) or type(link).__name__).split())[:400] for link in chain[:2])
    return ": ".join(said)
