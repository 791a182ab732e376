"""The hash of a folder that DVC asks for at every stage, found out once.

A study has 137 stages, and each depends on some ten folders of code that most have in common. DVC trusts its hash of a
file whose inode, size and time have not changed. Here that of a folder is trusted where those of no file in it have.
"""

import os
from typing import Any


def install() -> None:
    """Let DVC in this process hash a folder that stages depend on again only where a file in it has changed."""
    from dvc.dependency.base import Dependency

    theirs, known = Dependency._get_hash_meta, {}

    def hash_and_meta(self: Any) -> tuple[Any, Any]:
        state = folder_state(self.fs_path) if self.fs.protocol == "local" else None
        if state is None:
            return theirs(self)
        which = (self.fs_path, self.hash_name)
        if which not in known or known[which][0] != state:
            known[which] = (state, theirs(self))
        return known[which][1]

    Dependency._get_hash_meta = hash_and_meta


def folder_state(path: str) -> tuple | None:
    """Name, inode, size and time of every file and folder below a folder; None for what is no folder."""
    if not os.path.isdir(path):
        return None
    found, waiting = [], [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat()
                found.append((entry.path, status.st_ino, status.st_size, status.st_mtime_ns))
                if entry.is_dir():
                    waiting.append(entry.path)
    return tuple(found)
