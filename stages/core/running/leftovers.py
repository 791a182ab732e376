"""What a killed DVC left half-written, put right before the next one starts.

DVC writes two files in place: dvc.lock, after every stage and for most of a second where it is long, and its table of
who reads and writes what, `.dvc/tmp/rwlock`. Killed meanwhile, it leaves one that no later DVC can read. No result is
lost with what is missing there: DVC finds those of finished stages in its run cache.
"""

import json
from pathlib import Path
from typing import Any

from stages.core.process.artifacts import write_text

HEAD = "schema: '2.0'\nstages:\n"  # how DVC begins a dvc.lock


def mend(repo: Any) -> list[str]:
    """Make both files of a `dvc.repo.Repo` readable again, and say in a line each what was done.

    Nothing is done while another DVC holds the repository's lock, which it does whenever it writes these files.
    """
    from dvc.lock import LockError

    try:
        with repo.lock:
            return _table(Path(repo.tmp_dir, "rwlock")) + _record(Path(repo.root_dir, "dvc.lock"))
    except LockError:
        return []


def readable(lock: str) -> bool:
    """Whether DVC can go on from a dvc.lock: it takes one whose last line was cut short, but fails by it later."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(lock, "dvc.lock"))
    except (YAMLFileCorruptedError, Invalid):
        return False
    return lock.endswith("\n")


def whole(lock: str) -> str | None:
    """What DVC can read of a dvc.lock that was cut short: all entries but the last, "" where there is no other.

    None where the file was not cut short but, say, has the marks of a merge.
    """
    lines = lock.splitlines(keepends=True)
    if any(line.startswith(("<<<<<<<", ">>>>>>>")) for line in lines):
        return None
    entries = [number for number, line in enumerate(lines) if line.startswith("  ") and line[2:3].strip()]
    kept = "".join(lines[: entries[-1]]) if entries else lock.rstrip(" ")
    if HEAD.startswith(kept):
        return ""
    return kept if readable(kept) else None


def _table(path: Path) -> list[str]:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        path.unlink()
        return [f"{path.name} of a DVC that was killed: removed, since it was cut short"]
    return []


def _record(path: Path) -> list[str]:
    try:
        lock = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    if readable(lock) or (kept := whole(lock)) is None:
        return []
    if kept:
        write_text(path, kept)
    else:
        path.unlink()
    return [f"{path.name} was cut short: its last entry is taken out"]
