"""The state of unfinished trainings on disk, from which a killed training continues."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.core.process.artifacts import read_metadata, read_tensors, write_tensors
from stages.core.process.errors import UserError


class Unfinished:
    """The last two states of one training, in a folder of its own; the older one is for a damaged newer one."""

    def __init__(self, folder: Path, seconds: float = 30.0, share: float = 0.02):
        """States are written at most once in `seconds`, and so rarely that it takes at most `share` of the time."""
        self.folder, self.seconds, self.share = folder, seconds, share
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to write a state."""
        return time.monotonic() - self.last >= max(self.seconds, self.cost / self.share)

    def keep(self, step: int, tensors: dict[str, Tensor], progress: Any) -> None:
        """Write the state after `step`, tensors and a JSON value, and delete all but the newest two states."""
        begin = time.monotonic()
        write_tensors(self._path(step), tensors, {"progress": json.dumps(progress)})
        for old in self._kept()[2:]:
            old.unlink()
        self.last = time.monotonic()
        self.cost = self.last - begin

    def newest(self) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and the JSON value of the newest undamaged state; None where there is none."""
        for path in self._kept():
            try:
                return read_tensors(path), json.loads(read_metadata(path)["progress"])
            except UserError:
                path.unlink()
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:09d}.safetensors"

    def _kept(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)


def state_folder(folder: Path, facts: Any, inputs: Iterable[Path]) -> Path:
    """The folder below `folder` for a training's state, named by its `fingerprint`.

    States of other facts, inputs or code cannot be continued and are deleted.
    """
    mine = folder / fingerprint(facts, inputs)
    for other in folder.glob("*"):
        if other != mine and other.is_dir():
            shutil.rmtree(other)
    return mine


def fingerprint(facts: Any, inputs: Iterable[Path]) -> str:
    """A hash, 16 digits, of `facts` (a JSON value), of all files of inputs, and of the code of stages."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    code = Path(__file__).parent.parent.rglob("*.py")
    for path in (*inputs, *code):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as bytes_:
                    found.update(hashlib.file_digest(bytes_, "sha256").digest())
    return found.hexdigest()[:16]
