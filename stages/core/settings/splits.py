"""The slices of a data set that `datasets` writes as train, train[:50%] or train[100:200]+validation."""

import re
from collections.abc import Mapping
from itertools import combinations

Bound = tuple[int, int]  # percent of the rows, and rows on top
Part = tuple[str, Bound, Bound]  # a split (or its file), where the slice begins and where it ends

BOUND = r"(-?\d+(?:_\d+)*%?)?"
SLICE = re.compile(rf"([\w.-]+)(?:\[\s*{BOUND}\s*:\s*{BOUND}\s*\])?(?:\((?:closest|pct1_dropremainder)\))?")


def parts(split: str) -> list[Part]:
    """What a split is put together from. Raises ValueError where `datasets` could not read it or no row is left."""
    found = []
    for piece in split.split("+"):
        matched = SLICE.fullmatch(piece.strip())
        if not matched:
            raise ValueError(f"{split!r} is no split: write it as train, train[:50%] or train[100:200]")
        name, begin, end = matched.groups()
        bounds = _bound(begin, (0, 0)), _bound(end, (100, 0))
        if bounds[0] >= bounds[1]:
            raise ValueError(f"{split!r} has no rows")
        found.append((name, *bounds))
    return found


def names(split: str) -> list[str]:
    """The splits, or files, that a split is put together from."""
    return [name for name, _, _ in parts(split)]


def _bound(text: str | None, otherwise: Bound) -> Bound:
    if text is None:
        return otherwise
    number = int(text.removesuffix("%").replace("_", ""))
    if text.endswith("%"):
        return (number if number >= 0 else 100 + number, 0)
    return (0, number) if not text.startswith("-") else (100, number)


def overlap(one: str, other: str, files: Mapping[str, str] | None = None) -> bool:
    """Whether two splits share rows of every data set that is large enough.

    Bounds are compared by their percentage, then by their rows; `files` says which file a split's name stands for.
    """
    source = lambda name: (files or {}).get(name, name)  # noqa: E731
    return any(
        source(a) == source(b) and max(begin, start) < min(end, stop)
        for a, begin, end in parts(one)
        for b, start, stop in parts(other)
    )


def check(named: Mapping[str, str | None], files: Mapping[str, str] | None) -> None:
    """Raise ValueError where two of the named splits share rows; one that is None is not there."""
    given = [(name, split) for name, split in named.items() if split is not None]
    for _, split in given:
        parts(split)
    for (name, one), (other, two) in combinations(given, 2):
        if overlap(one, two, files):
            raise ValueError(f"{name} = {one} and {other} = {two} overlap: no row may be in both")


def most_rows(split: str) -> int | None:
    """How many rows a split has at most; None where that depends on the data set."""
    counts = [end[1] - begin[1] if begin[0] == end[0] else None for _, begin, end in parts(split)]
    return None if None in counts else sum(counts)
