"""The slices of a data set that `datasets` writes as train, train[:50%] or train[100:200]+validation."""

import glob
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

Bound = tuple[int, int]  # percent of the rows, and rows on top
Part = tuple[str, Bound, Bound]  # a split (or its file), where the slice begins and where it ends

NAMES = ("train", "validation", "test")  # what a study calls its splits
BOUND = r"(-?\d+(?:_\d+)*%?)?"
SLICE = re.compile(rf"([\w.-]+)(?:\[\s*{BOUND}\s*:\s*{BOUND}\s*\])?(?:\(closest\))?")


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


class Cut(NamedTuple):
    """A split of a data set: files says which files a split's name stands for, path is the data set's."""

    split: str
    files: Mapping[str, str] | None = None
    path: str = ""

    @property
    def sources(self) -> dict[str, set]:
        """What each split's name stands for."""
        return {name: sources(pattern, self.path) for name, pattern in (self.files or {}).items()}

    @property
    def whole(self) -> "Cut":
        """All rows of what it is cut from."""
        return self._replace(split="+".join(names(self.split)))

    @property
    def kinds(self) -> set[str]:
        """What its bounds are counted in: percent, rows from the head, rows from the tail."""
        bounds = [bound for _, *both in parts(self.split) for bound in both]
        return {
            ("tail" if percent else "head") if rows else "percent" for percent, rows in bounds if percent % 100 or rows
        }


def overlap(one: str, other: str, files: Mapping[str, str] | None = None, path: str = "") -> bool:
    """`share` of two splits of one data set."""
    return share(Cut(one, files, path), Cut(other, files, path))


def share(one: Cut, other: Cut) -> bool:
    """Whether two splits share rows of every data set that is large enough.

    Bounds are compared by their percentage, then by their rows. Slices of different collections with a file in common
    count as sharing rows.
    """
    of_one, of_other = one.sources, other.sources

    def shared(a: Part, b: Part) -> bool:
        (a, begin, end), (b, start, stop) = a, b
        sources_a, sources_b = of_one.get(a, {a}), of_other.get(b, {b})
        if sources_a != sources_b:
            return "all" in (a, b) or bool(sources_a & sources_b)  # `datasets` calls the union of all splits `all`
        return max(begin, start) < min(end, stop)

    return any(shared(a, b) for a in parts(one.split) for b in parts(other.split))


def share_by_rows(one: Cut, other: Cut, count: Callable[[Cut, str], int]) -> bool:
    """Whether two splits share rows where only the number of rows says so.

    They are of the same data, and one is cut by percent, the other by rows, or one by rows from the head and the other
    by rows from the tail. count: the rows of a split by its name; asked only then.
    """
    if len(one.kinds | other.kinds) < 2 or not share(one.whole, other.whole):
        return False
    sized = [{name: count(cut, name) for name in names(cut.split)} for cut in (one, other)]
    return share(*(cut._replace(split=in_rows(cut.split, sizes)) for cut, sizes in zip((one, other), sized)))


def in_rows(split: str, sizes: Mapping[str, int]) -> str:
    """A split with all its bounds in rows, as `datasets` takes them of sets of these sizes."""
    from datasets import ReadInstruction

    found = ReadInstruction.from_spec(split).to_absolute(dict(sizes))
    return "+".join(f"{part.splitname}[{part.from_}:{part.to}]" for part in found if part.from_ < part.to)


def sources(pattern: str, path: str = "") -> set:
    """What a value of `data_files` stands for: a set that no other spelling of the same files changes.

    Files that are there are known by device and inode, whatever links or letters lead to them; others by their
    absolute path. Addresses are written in one way, a hub's files with their revision (`main` unless named). Relative
    paths belong to the data set's folder where `path` is one.
    """
    address = urlsplit(pattern)
    if address.scheme == "file":
        pattern = unquote(address.path)
    elif len(address.scheme) > 1:
        return {_address(pattern)}
    base = os.path.expanduser(path) if os.path.isdir(os.path.expanduser(path)) else ""
    pattern = os.path.join(base, os.path.expanduser(pattern))
    found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    files = {_identity(name) for name in found if os.path.isfile(name)}
    return files or {os.path.realpath(pattern)}


def _identity(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _address(url: str) -> str:
    """An address without a double slash or `..`, in the hub's own form where it is one of the hub's."""
    scheme, rest = url.split("://", 1)
    rest = posixpath.normpath(rest.split("?")[0])
    on_hub = re.fullmatch(r"[^/]+/datasets/([^/]+/[^/]+)/(?:resolve|blob|raw)/([^/]+)/(.+)", rest)
    if scheme.lower() != "hf" and not (on_hub and "huggingface" in rest.split("/")[0]):
        return unquote(f"{scheme.lower()}://{rest}")
    named = re.fullmatch(r"datasets/([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", rest)
    if not (on_hub or named):
        return unquote(f"hf://{rest}")
    name, revision, file = (unquote(part or "main") for part in (on_hub or named).groups())
    return f"hf://datasets/{name}@{revision.removeprefix('refs/heads/')}/{file}"


def check(named: Mapping[str, str | None], files: Mapping[str, str] | None, path: str = "") -> None:
    """Raise ValueError where two of the named splits share rows; one that is None is not there."""
    given = [(name, split) for name, split in named.items() if split is not None]
    for _, split in given:
        parts(split)
    for (name, one), (other, two) in combinations(given, 2):
        if overlap(one, two, files, path):
            raise ValueError(f"{name} = {one} and {other} = {two} overlap: no row may be in both")


def most_rows(split: str) -> int | None:
    """How many rows a split has at most; None where that depends on the data set."""
    counts = [end[1] - begin[1] if begin[0] == end[0] else None for _, begin, end in parts(split)]
    return None if None in counts else sum(counts)
