"""What a teacher answers to the batches of a training, kept for the next training with the same teacher and batches.

All variants of a study see the same batches in the same order, so their teacher's forward passes, a fifth of a
recovery, would be the same for each. They are kept bit by bit, in a folder that ends with `make repro`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from stages.core.process.artifacts import read_tensors, write_tensors
from stages.core.process.errors import UserError

MOST = 2**29  # bytes that a folder keeps, but for what several trainings write to it at a time


class Answers:
    """The answers of one teacher in a folder, a file for each batch."""

    def __init__(self, folder: Path, facts: Any, teacher: Path):
        """facts: a JSON value with what else the bits of an answer depend on. teacher: the folder of its checkpoint."""
        self.folder = folder
        self.room = MOST - sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        self.known = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for file in sorted(path for path in teacher.rglob("*") if path.is_file()):
            self.known.update(file.name.encode() + file.read_bytes())

    def to(self, batch: Tensor, hidden: bool, ask: Callable[[], Any]) -> Any:
        """What `ask` returns for a batch: an object with `logits` and, if asked for, `hidden_states`.

        It is read from the folder where it is there. It is written as long as the folder has room.
        """
        path = self.folder / f"{self._name(batch)}.safetensors"
        with suppress(UserError):
            found = read_tensors(path, None if hidden else ["logits"])
            states = [found[str(at)] for at in range(len(found) - 1)]
            if states or not hidden:
                return SimpleNamespace(logits=found["logits"], hidden_states=states)
        answer = ask()
        tensors = {"logits": answer.logits}
        if hidden:
            tensors |= {str(at): states for at, states in enumerate(answer.hidden_states)}
        # Read again, a tensor of another layout would be summed in another order.
        size = sum(each.nbytes for each in tensors.values())
        if all(each.is_contiguous() for each in tensors.values()) and size <= self.room:
            self.room -= size
            self._write(path, tensors)
        return answer

    def _name(self, batch: Tensor) -> str:
        known = self.known.copy()
        known.update(f"{tuple(batch.shape)} {batch.dtype}".encode() + batch.contiguous().numpy().tobytes())
        return known.hexdigest()[:32]

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Another chain may be writing the same answer: each writes a file of its own and renames it."""
        draft = path.with_suffix(f".{os.getpid()}")
        with suppress(UserError, OSError):  # a full disk, or `make repro` has ended: nothing is kept
            write_tensors(draft, {name: each.clone() for name, each in tensors.items()})
            os.replace(draft, path)
