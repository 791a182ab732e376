"""Reading and writing artifacts so that none is ever half there.

Everything is written beside its destination under a temporary name and renamed when it is complete; a
reader that meets a damaged file names the file and the command that makes it anew.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.process.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` on success and vanishes on failure.

    Works for a file and for a folder; the parent folder is made. Raises UserError where the disk is full, where nothing
    may be written there, and where `path` is the working directory or one above it.
    """
    if path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the folder that this runs in, or one above it: it is not replaced")
    draft = path.parent / f".{path.name}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(draft)  # of a process that was killed
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield draft
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
    except Exception as error:
        # safetensors gives the system's number in its text alone.
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"cannot write {path}: {os.strerror(number)}") from error
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"cannot write {path}: {os.strerror(number)}. Make room and run `dvc repro` again.") from error
    finally:
        _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; raise ValueError on NaN or infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    with _explaining(path, (OSError, ValueError)):
        return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of one and the same set of columns as comma-separated text; without a row the file is empty."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """Rows of a comma-separated file of numbers with a header."""
    with _explaining(path, (OSError, ValueError, TypeError)):
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as npz."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name. Nothing is unpickled."""
    import zipfile

    with _explaining(path, (OSError, ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile)):
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write named torch tensors as safetensors; of `metadata`, more than one key would vary the bytes.

    Raises UserError, before anything is written, where the disk has no room for them.
    """
    from safetensors.torch import save_file

    with replacing(path) as draft:
        need, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(path.parent).free
        if need > free:
            raise UserError(
                f"cannot write {path}: it takes {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Make room and "
                "run `dvc repro` again."
            )
        draft.touch()
        mode = draft.stat().st_mode  # of any new file; that of safetensors is its owner's alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft, metadata)
        draft.chmod(mode)


def read_tensors(path: Path, names: list[str] | None = None) -> dict[str, Any]:
    """Torch tensors of a safetensors file on the CPU: all of them, or only those named."""
    from safetensors import SafetensorError, safe_open

    with _explaining(path, (OSError, SafetensorError)):
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a safetensors file. No tensor is read."""
    from safetensors import SafetensorError, safe_open

    with _explaining(path, (OSError, SafetensorError)):
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    from safetensors import SafetensorError, safe_open

    with _explaining(path, (OSError, SafetensorError)):
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}


@contextmanager
def parquet_writer(path: Path, schema: Any, compression: str = "snappy") -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetWriter` with a checksum on every page (parquet has none unless asked).

    Without statistics: nobody here looks for rows by their values.
    """
    import pyarrow.parquet as pq

    with replacing(path) as draft:
        options = {"write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(draft, schema, compression=compression, **options) as writer:
            yield writer


@contextmanager
def parquet_reader(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that verifies the checksum of every page it reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _explaining(path, (OSError, ValueError, KeyError, pa.ArrowException)):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file


def numbers(column: Any) -> np.ndarray:
    """A pyarrow column of numbers, whole or in chunks, as an array that may not be written to.

    Read by its buffers: pyarrow's own `to_numpy` imports pandas. Raises ValueError where a value is missing.
    """
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} values are missing")
    kind = np.dtype(column.type.to_pandas_dtype())
    parts = [
        np.frombuffer(part.buffers()[1], kind, len(part), kind.itemsize * part.offset)
        for part in getattr(column, "chunks", [column])
        if len(part)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])


@contextmanager
def _explaining(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}. Delete it and run `dvc repro` to make it anew.") from error
