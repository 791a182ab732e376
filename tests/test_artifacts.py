"""Artifacts: never half written, the same bytes every time, and damage is found and named."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from closure import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.core.process import artifacts
from stages.core.process.errors import UserError
from stages.core.text import corpus

TOKENS = (np.arange(3000) * 7919 % 2048).astype(np.int32)
# kind of file: what is stored, how it is written, how it is read
KINDS = {
    "parquet": (TOKENS, corpus.write_tokens, lambda path: corpus.read_tokens(path).numpy()),
    "npz": ({"0-1": np.arange(60), "0-2": np.arange(60)[::-1]}, artifacts.write_arrays, artifacts.read_arrays),
    "safetensors": ({"b": torch.eye(9), "a": torch.arange(3)}, artifacts.write_tensors, artifacts.read_tensors),
    "json": ({"é": [1.5, None, "x"], "a": {}}, artifacts.write_json, artifacts.read_json),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def plain(value):
    """A value that `==` compares whole."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def make(folder, kind, value=None):
    usual, write, read = KINDS[kind]
    value = usual if value is None else value
    path = folder / "deep" / "down" / f"file.{kind}"
    write(path, value)
    return path, plain(value), read


def fill(path, kind, text):
    """Make a file or a folder (or nothing) with this text in it."""
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text(text)
    elif kind == "file":
        path.write_text(text)


def content(folder):
    """Everything in a folder, by relative path: the text of files, None for folders."""
    found = folder.rglob("*")
    return {path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None for path in found}


# Whole or not at all


@every_kind
def test_what_is_written_is_read_and_its_bytes_are_always_the_same(kind, tmp_path):
    path, value, read = make(tmp_path / "a", kind)
    again, _, _ = make(tmp_path / "b", kind)
    assert plain(read(path)) == value
    assert path.read_bytes() == again.read_bytes()
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("draft", ["nothing", "file", "folder"])
def test_a_failure_leaves_things_as_they_were(before, draft, tmp_path):
    fill(tmp_path / "out", before, "old")
    old = content(tmp_path)
    with pytest.raises(KeyboardInterrupt), artifacts.replacing(tmp_path / "out") as path:
        fill(path, draft, "new")
        raise KeyboardInterrupt
    assert content(tmp_path) == old


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
def test_a_file_replaces_all_of_the_old(before, tmp_path):
    fill(tmp_path / "out", before, "old")
    with artifacts.replacing(tmp_path / "out") as draft:
        draft.write_text("new")
        assert draft.parent == tmp_path and draft.name.startswith(".")
    assert content(tmp_path) == {"out": "new"}


@pytest.mark.parametrize("name", [".", "..", "inside/.."])
def test_the_folder_that_all_runs_in_is_never_replaced(name, tmp_path, monkeypatch):
    (tmp_path / "here/inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="it is not replaced"), artifacts.replacing(Path(name)):
        raise AssertionError("nothing is begun")
    assert (tmp_path / "here/inside").is_dir()


@pytest.mark.parametrize("before", ["nothing", "folder"])
def test_a_folder_replaces_all_of_the_old(before, tmp_path):
    fill(tmp_path / "out", before, "old")
    with artifacts.replacing(tmp_path / "out") as draft:
        draft.mkdir()
        (draft / "new").write_text("new")
        assert not (tmp_path / "out" / "new").exists()
    assert content(tmp_path) == {"out": None, "out/new": "new"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(value, tmp_path):
    path = tmp_path / "metrics.json"
    artifacts.write_json(path, {"loss": 1.0})
    old = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(path, {"loss": [value]})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("left", ["nothing", "file", "folder"])
def test_what_a_killed_process_left_is_in_no_ones_way(left, tmp_path):
    fill(tmp_path / ".out.part", left, "half")
    with artifacts.replacing(tmp_path / "out") as draft:
        draft.write_text("whole")
    assert content(tmp_path) == {"out": "whole"}


@every_kind
def test_a_full_disk_is_a_message_and_leaves_things_as_they_were(kind, tmp_path):
    """The system refuses this process files above 100 bytes, as a full disk would."""
    import resource

    path, value, read = make(tmp_path, kind)
    _, write, _ = KINDS[kind]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match=f"cannot write {path}: .*Make room"):
            write(path, {str(i): i for i in range(99)} if kind == "json" else KINDS[kind][0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert plain(read(path)) == value and list(path.parent.iterdir()) == [path]


def test_too_little_room_for_tensors_is_known_before_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3_000_000))
    with pytest.raises(UserError, match="model.safetensors: it takes 4 MB, and 3 MB are free"):
        artifacts.write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1_000_000)})
    assert not list(tmp_path.iterdir())


@every_kind
def test_a_file_may_be_read_by_whom_any_new_file_may(kind, tmp_path):
    path, _, _ = make(tmp_path, kind)
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


# Damage


@every_kind
def test_a_file_cut_short_is_named(kind, tmp_path):
    path, _, read = make(tmp_path, kind)
    whole = path.read_bytes().rstrip(b"\n")
    for left in {0, 1, 4, len(whole) // 2, len(whole) - 9, len(whole) - 1}:
        path.write_bytes(whole[:left])
        with pytest.raises(UserError, match=f"cannot read {path}.*dvc repro"):
            read(path)


@every_kind
def test_a_file_that_is_not_there_is_named(kind, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        KINDS[kind][2](tmp_path / "nowhere")


def test_a_flipped_bit_in_a_page_of_tokens_is_found(tmp_path):
    import pyarrow.parquet as pq

    path, _, read = make(tmp_path, "parquet")
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    whole = path.read_bytes()
    for place in range(column.data_page_offset + 100, column.data_page_offset + column.total_compressed_size, 97):
        path.write_bytes(flipped(whole, place, place % 8))
        with pytest.raises(UserError, match=f"cannot read {path}.*CRC"):
            read(path)


def flipped(whole, place, bit):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << bit
    return damaged


@pytest.mark.parametrize("kind, value", [("parquet", TOKENS[:200]), ("npz", {"0-1": np.arange(40)})])
def test_no_flipped_bit_gives_other_values_or_another_error(kind, value, tmp_path):
    path, value, read = make(tmp_path, kind, value)
    whole, found = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place, (1, 5)[place % 2]))
        try:
            if plain(read(path)) != value:
                found.append((place, "other values"))
        except UserError:
            pass
        except Exception as error:
            found.append((place, type(error).__name__))
    assert not found


# Tables of tokens


@given(
    ids=arrays.arrays(np.int32, st.integers(0, 300), elements=st.integers(0, 2**31 - 1)),
    most=st.none() | st.integers(0, 400),
)
def test_the_head_of_a_table_is_its_first_tokens(ids, most, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "tokens.parquet"
    corpus.write_tokens(path, ids)
    found = corpus.read_tokens(path, most)
    assert found.dtype == torch.int64 and found.tolist() == ids[:most].tolist()


@given(length=st.integers(1, 30), tokens=st.integers(0, 200))
def test_packing_drops_only_the_rest(length, tokens):
    text = torch.arange(tokens)
    if tokens < length:
        with pytest.raises(UserError, match=f"{tokens} tokens, fewer than one sequence of {length}"):
            corpus.pack(text, length)
    else:
        rows = corpus.pack(text, length)
        assert rows.shape == (tokens // length, length)
        assert rows.flatten().tolist() == list(range(tokens - tokens % length))


@pytest.mark.parametrize("start", [None, 0, 9])
def test_a_table_keeps_the_start_token_and_rows_begin_with_it(start, tmp_path):
    corpus.write_tokens(tmp_path / "tokens.parquet", np.arange(20, dtype=np.int32), start)
    found = corpus.read_stream(tmp_path / "tokens.parquet", 13)
    assert found.start == start and found.tokens.tolist() == list(range(13)) and len(found) == 13
    rows = corpus.pack(found.tokens, 4, start).tolist()
    if start is None:
        assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    else:
        assert rows == [[start, *range(n, n + 3)] for n in range(0, 12, 3)]


@pytest.mark.parametrize("kind", ["int32", "int8", "float32", "float64"])
def test_numbers_are_what_pyarrow_says_they_are(kind):
    """Whole and in chunks, cut at either end, and none at all."""
    import pyarrow as pa

    values = pa.array(range(100), getattr(pa, kind)())
    parts = [values.slice(3, 20), values.slice(50, 0), values.slice(40)]
    for column in (values, values.slice(7, 9), values.slice(100), pa.chunked_array(parts), pa.chunked_array([], kind)):
        found = artifacts.numbers(column)
        assert found.dtype == kind and np.array_equal(found, column.to_numpy())


def test_numbers_of_which_one_is_missing_are_refused():
    import pyarrow as pa

    with pytest.raises(ValueError, match="1 of 3 values are missing"):
        artifacts.numbers(pa.array([1, None, 3], pa.int32()))


def test_tokens_are_read_without_pandas(tmp_path):
    corpus.write_tokens(tmp_path / "tokens.parquet", np.arange(10))
    code = (
        "import sys; from pathlib import Path; from stages.core.text import corpus\n"
        f"assert corpus.read_tokens(Path({str(tmp_path / 'tokens.parquet')!r}), 5).tolist() == [0, 1, 2, 3, 4]\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@every_kind
def test_where_nothing_can_be_written_is_one_line(kind, tmp_path):
    (tmp_path / "deep").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/deep/down/file.{kind}: "):
        make(tmp_path, kind)
    assert content(tmp_path) == {"deep": "a file where a folder is needed"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_may_not_be_written_is_one_line(number, tmp_path):
    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/out: {os.strerror(number)}$"):
        with artifacts.replacing(tmp_path / "out"):
            raise OSError(number, os.strerror(number))
