"""Text as one stream of tokens."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.process.artifacts import numbers, parquet_reader, parquet_writer
from stages.core.process.errors import UserError

START = b"start"  # the key of a table's metadata that holds the start token


@dataclass(frozen=True)
class Stream:
    """A text as token ids (int64, (length,)), and the token that its model reads before any text, if there is one.

    A slice is a part of the text.
    """

    tokens: Tensor
    start: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> "Stream":
        return Stream(self.tokens[part], self.start)


def tokenise(tokenizer: Any, rows: Iterable[str]) -> np.ndarray:
    """Rows joined by a blank line, as int32 token ids without special tokens (the convention for WikiText)."""
    ids = tokenizer("\n\n".join(rows), add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int32)


def write_tokens(path: Path, ids: np.ndarray, start: int | None = None) -> None:
    """A parquet table with one int32 column, `token`, one row per token in reading order.

    The start token is in the table's metadata: every row and window that is cut from the stream begins with it.
    """
    import pyarrow as pa

    table = pa.table({"token": pa.array(ids, type=pa.int32())})
    if start is not None:
        table = table.replace_schema_metadata({START: str(start)})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def read_tokens(path: Path, most: int | None = None) -> Tensor:
    """The first `most` tokens of a table that `write_tokens` wrote, int64 (all of them where None)."""
    with parquet_reader(path) as file:
        ids = numbers(file.read(columns=["token"])["token"])
        if len(ids) != file.metadata.num_rows:
            raise ValueError(f"{len(ids)} of {file.metadata.num_rows} rows found")
    return torch.from_numpy(ids[:most].astype(np.int64))


def read_start(path: Path) -> int | None:
    """The start token of a table that `write_tokens` wrote; None where it has none."""
    with parquet_reader(path) as file:
        found = (file.schema_arrow.metadata or {}).get(START)
        return None if found is None else int(found)


def read_stream(path: Path, most: int | None = None) -> Stream:
    """The first `most` tokens of a table that `write_tokens` wrote (all of them where None), with its start token."""
    return Stream(read_tokens(path, most), read_start(path))


def tokenise_rows(tokenizer: Any, rows: Iterable[str]) -> list[list[int]]:
    """The rows that have text, each by itself, as token ids without special tokens."""
    text = [row for row in rows if row.strip()]
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def write_rows(path: Path, rows: list[list[int]]) -> None:
    """A parquet table with one column, `tokens`, a list of int32 for each row."""
    import pyarrow as pa

    table = pa.table({"tokens": pa.array(rows, type=pa.list_(pa.int32()))})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def read_rows(path: Path, most: int) -> list[list[int]]:
    """The first `most` rows of a table that `write_rows` wrote."""
    with parquet_reader(path) as file:
        return file.read(columns=["tokens"])["tokens"].slice(0, most).to_pylist()


def shared(rows: Iterable[str], others: Collection[str]) -> dict[str, int]:
    """How many rows with text there are and how many of them are among `others`, with the characters of both.

    Spaces around a row do not count; nor are they there in `others`.
    """
    texts = [text for row in rows if (text := row.strip())]
    twice = [text for text in texts if text in others]
    size = lambda found: sum(map(len, found))  # noqa: E731
    return {
        "rows": len(texts), "shared_rows": len(twice), "characters": size(texts), "shared_characters": size(twice),
    }  # fmt: skip


def pack(tokens: Tensor, length: int, start: int | None = None) -> Tensor:
    """Tokens as rows of exactly `length`, shape (rows, length); a shorter rest is dropped, nothing is padded.

    Where there is a start token, every row begins with it.
    """
    room = length if start is None else length - 1
    rows = len(tokens) // room if room else 0
    if rows == 0:
        raise UserError(f"the text has {len(tokens)} tokens, fewer than one sequence of {length}")
    packed = tokens[: rows * room].view(rows, room)
    return packed if start is None else torch.cat([packed.new_full((rows, 1), start), packed], 1)


def digest(batches: Iterable[Tensor]) -> str:
    """The sha256, in hexadecimal, of token ids in order, as little-endian int64 whatever the machine."""
    found = hashlib.sha256()
    for batch in batches:
        found.update(batch.numpy().astype("<i8").tobytes())
    return found.hexdigest()
