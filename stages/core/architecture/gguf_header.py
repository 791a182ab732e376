"""The head of a GGUF file: its key-values, without its arrays, and the names of its tensors.

The package `gguf` makes an array of every token of the vocabulary, which takes seconds; this reads the same bytes
(format: github.com/ggml-org/ggml/blob/master/docs/gguf.md) and only steps over them.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read(path: Path) -> tuple[dict[str, Any], set[str]]:
    """Key -> value (of an array: how many entries it has), and the tensors' names.

    Raises UserError where the file cannot be read or is no little-endian GGUF of version 2 or 3.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).head()
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise UserError(f"cannot read {path} as GGUF: {' '.join(str(error).split())}") from error


class _Cursor:
    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def head(self) -> tuple[dict[str, Any], set[str]]:
        magic, version, tensors, pairs = self.take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        values = {self.string(): self.value() for _ in range(pairs)}
        names = set()
        for _ in range(tensors):
            names.add(self.string())
            (dimensions,) = self.take("I")
            self.take(f"{dimensions}QIQ")
        return values, names

    def take(self, form: str) -> tuple:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def string(self) -> str:
        (size,) = self.take("Q")
        return self.take(f"{size}s")[0].decode("utf-8")

    def value(self) -> Any:
        (kind,) = self.take("I")
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(SCALARS[kind])[0]
        kind, count = self.take("IQ")
        if kind == STRING:
            data, at = self.data, self.at
            for _ in range(count):
                at += 8 + int.from_bytes(data[at : at + 8], "little")
            self.at = at
        else:
            self.at += count * struct.calcsize(f"<{SCALARS[kind]}")
        return count
