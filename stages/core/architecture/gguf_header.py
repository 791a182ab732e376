"""The header of a GGUF file: its key-values, without the contents of arrays, and the names of its tensors.

The package `gguf` makes an array of every token of the vocabulary, which takes seconds. This reader skips them. Format:
github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError

STRING, ARRAY = 8, 9
FLOAT32 = 0  # of a tensor
ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Length(int):
    """How many entries an array has, which stands for the array."""


def read(path: Path) -> tuple[dict[str, Any], set[str]]:
    """Key -> value, for an array its `Length`; and the names of the tensors.

    Raises UserError where the file cannot be read, is no little-endian GGUF of version 2 or 3, or ends early.
    """
    with _opened(path) as cursor:
        values, tensors = cursor.head()
        end = cursor.begin(values) + max(map(_end, tensors.values())) if tensors else 0
        if (lacking := end - len(cursor.data)) > 0:
            raise ValueError(f"damaged, or has not arrived as a whole: its last {lacking:,} bytes are missing")
        return values, set(tensors)


def floats(path: Path, name: str) -> list[float]:
    """The values of a float32 tensor. Raises UserError as `read` does, and where the tensor is of another type."""
    with _opened(path) as cursor:
        values, tensors = cursor.head()
        size, kind, offset = tensors[name]
        if kind != FLOAT32:
            raise ValueError(f"{name} is not float32")
        cursor.at = cursor.begin(values) + offset
        return list(cursor.take(f"{size}f"))


def _end(tensor: tuple[int, int, int]) -> int:
    """Where a tensor ends, in bytes from where the first begins; of a type that is not known, where it begins."""
    from gguf.constants import GGML_QUANT_SIZES

    size, kind, offset = tensor
    block, taken = GGML_QUANT_SIZES.get(kind, (1, 0))
    return offset + size // block * taken


@contextmanager
def _opened(path: Path) -> Iterator["_Cursor"]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Cursor(data)
    except (OSError, ValueError, struct.error, KeyError, ArithmeticError, TypeError) as error:
        raise UserError(f"cannot read {path} as GGUF: {' '.join(str(error).split())}") from error


class _Cursor:
    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def head(self) -> tuple[dict[str, Any], dict[str, tuple[int, int, int]]]:
        """Key -> value, and tensor -> its number of entries, type and offset."""
        magic, version, tensors, pairs = self.take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        values = {self.string(): self.value() for _ in range(pairs)}
        found = {}
        for _ in range(tensors):
            name = self.string()
            (dimensions,) = self.take("I")
            *sizes, kind, offset = self.take(f"{dimensions}QIQ")
            found[name] = math.prod(sizes), kind, offset
        return values, found

    def begin(self, values: dict[str, Any]) -> int:
        """Where the first tensor begins, once `head` has been read."""
        alignment = values.get("general.alignment", ALIGNMENT)
        return -(-self.at // alignment) * alignment

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
        return Length(count)
