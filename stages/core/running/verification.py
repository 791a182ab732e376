"""Does every file still hold what its hash says?

DVC knows an object of its cache by its name and a file by its time stamp and size: bytes that a disk or a program
changed in place are "up to date". Here every byte is read. Hashes, folders' listings and ignored files are DVC's own.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Record:
    """What dvc.lock says of a file or folder that a stage wrote or read."""

    stage: str
    path: Path
    md5: str  # a folder's is that of its listing, and ends in .dir
    cached: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class Seen:
    """What the cache and the working tree hold. Paths are relative to `root`."""

    root: Path
    objects: dict[str, Path]  # by name
    damaged: set[str]  # names of objects
    listings: dict[str, dict[str, str]]  # of folders, from whole objects: hashes by the path within
    hashes: dict[Path, str]  # of every file
    contents: dict[Path, str | None]  # hash of every path that dvc.lock names; None where nothing is


@dataclass(frozen=True)
class Finding:
    """A file that is not what its hash says, or an object that is not there.

    Everything to `remove` must be gone before any `mend` is run: DVC would copy a damaged object over a whole file.
    """

    what: str
    path: Path
    stage: str | None  # None: an object of an earlier run
    remove: Path | None = None
    mend: str | None = None


def verify(repo: Any, watch: Callable[[list[Path]], Iterable[Path]]) -> list[Finding]:
    """What is damaged, changed or missing in the cache and the working tree of a `dvc.repo.Repo`.

    `watch` is handed every file that is read, to show progress. What the working tree lacks is no finding: DVC says so.
    """
    outs, inputs = records(repo)
    seen = look([*outs, *inputs], repo, watch)
    owners = owned(outs, seen.listings)
    fetch = "dvc pull {}" if repo.config["core"].get("remote") else "dvc repro -s {}"
    strangers = [seen.objects[name] for name in sorted(seen.damaged - owners.keys())]
    found = [Finding("damaged object", path, None, path) for path in strangers]
    for name, pairs in owners.items():
        if name in seen.damaged or name not in seen.objects:
            found.append(object_finding(seen.objects.get(name), pairs, seen, fetch))
    for record in (record for record in outs if changed(record, seen)):
        found += output_findings(record, seen, fetch)
    return found + [Finding("changed input", record.path, record.stage) for record in inputs if changed(record, seen)]


def records(repo: Any) -> tuple[list[Record], list[Record]]:
    """The outputs that dvc.lock has hashes of, and the inputs that no stage makes, each with a stage that reads it."""
    root = Path(repo.root_dir)
    outs, inputs = [], {}
    for stage in repo.index.stages:
        for out in stage.outs:
            if out.hash_info:
                path = Path(out.fs_path).relative_to(root)
                outs.append(Record(stage.addressing, path, out.hash_info.value, out.use_cache, stage.frozen))
    made = {record.path for record in outs}
    for stage in repo.index.stages:
        for dep in stage.deps:
            path = Path(dep.fs_path).relative_to(root)
            of_a_stage = made & {path, *path.parents} or any(path in other.parents for other in made)
            if dep.hash_name == "md5" and dep.hash_info and not of_a_stage and not stage.frozen:
                inputs.setdefault((path, dep.hash_info.value), stage.addressing)
    return outs, [Record(stage, path, md5) for (path, md5), stage in inputs.items()]


def look(wanted: list[Record], repo: Any, watch: Callable[[list[Path]], Iterable[Path]]) -> Seen:
    """Read and hash every object of the cache and every file of the wanted paths."""
    root = Path(repo.root_dir)
    stored = [path.relative_to(root) for path in sorted(Path(repo.cache.local.path).glob("??/*"))]
    objects = {path.parent.name + path.name: path for path in stored if OBJECT.fullmatch(path.parent.name + path.name)}
    files = {record.path: files_of(record.path, repo) for record in wanted}
    read = [*objects.values(), *dict.fromkeys(file for found in files.values() for file in found)]
    hashes = {path: digest(root / path) for path in watch(read)}
    damaged = {name for name, path in objects.items() if hashes[path] != name.removesuffix(".dir")}
    listings = {
        name: {entry["relpath"]: entry["md5"] for entry in json.loads((root / path).read_bytes())}
        for name, path in objects.items()
        if name.endswith(".dir") and name not in damaged
    }
    contents = {
        path: listing_hash(path, found, hashes) if (root / path).is_dir() else hashes.get(path)
        for path, found in files.items()
    }
    return Seen(root, objects, damaged, listings, hashes, contents)


def files_of(path: Path, repo: Any) -> list[Path]:
    """A file, or the files of a folder that .dvcignore does not name; nothing where nothing is."""
    root = Path(repo.root_dir)
    if (root / path).is_file():
        return [path]
    return [Path(file).relative_to(root) for file in repo.dvcignore.find(repo.fs, str(root / path))]


def digest(path: Path) -> str:
    """The MD5 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def listing_hash(folder: Path, files: list[Path], hashes: dict[Path, str]) -> str:
    """The hash that DVC gives to a folder of `files`."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for file in files:
        tree.add(file.relative_to(folder).parts, None, HashInfo("md5", hashes[file]))
    tree.digest()
    return tree.oid


def owned(outs: list[Record], listings: dict[str, dict[str, str]]) -> dict[str, list[tuple[Record, Path]]]:
    """The outputs, and their files, that each object of the cache is needed for."""
    owners = defaultdict(list)
    for record in (record for record in outs if record.cached):
        owners[record.md5].append((record, record.path))
        for name, md5 in listings.get(record.md5, {}).items():
            owners[md5].append((record, record.path / name))
    return owners


def changed(record: Record, seen: Seen) -> bool:
    """Whether something else is there than what dvc.lock says."""
    return seen.contents[record.path] not in (record.md5, None)


def object_finding(stored: Path | None, owners: list[tuple[Record, Path]], seen: Seen, fetch: str) -> Finding:
    """What to do about an object that is damaged, or missing where `stored` is None."""
    # Where the working tree has the very content, it only needs to be stored again.
    whole = [(record, path) for record, path in owners if seen.contents[record.path] == record.md5]
    record, path = (whole or owners)[0]
    mend = f"dvc commit -f {record.stage}" if whole else fetch.format(record.stage)
    return Finding("damaged object" if stored else "missing object", stored or path, record.stage, stored, mend)


def output_findings(record: Record, seen: Seen, fetch: str) -> list[Finding]:
    """The files of an output that are not what its stage wrote, and what to do about it."""
    listing = seen.listings.get(record.md5, {})
    if record.frozen:
        mend = f"git restore {record.path}"
    elif not record.cached:
        mend = f"dvc repro -s {record.stage}"
    elif {record.md5, *listing.values()} <= seen.objects.keys() - seen.damaged:
        mend = f"dvc checkout {record.path}"
    else:
        mend = fetch.format(record.stage)
    known = {record.path / name: md5 for name, md5 in listing.items()}
    there = {path for path in seen.hashes if record.path in path.parents}
    strange = sorted(path for path in known.keys() | there if known.get(path) != seen.hashes.get(path))
    # Without a listing nobody knows which file of a folder it is.
    return [
        Finding("damaged output", path, record.stage, record.path, mend)
        for path in (known and strange) or [record.path]
    ]
