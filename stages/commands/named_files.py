"""The folders and files of this machine that params.yaml names: whether they are there, and whole. Few are opened."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.architecture import opening, shape
from stages.core.process import hub
from stages.core.process.errors import UserError
from stages.core.settings.params import Params
from stages.core.settings.texts import PACKAGED, Loaded

NO_FOLDER, NO_FILE = "there is no such folder", "no such file"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What `datasets` leaves out of what a pattern or a folder holds, unless it is named itself.
NO_DATA = {
    "README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json",
}  # fmt: skip


def missing(found: Params) -> Iterator[str]:
    """A line for every folder and file of this machine that the active profile or a variant names in vain."""
    where, profile = f"profiles.{found.profile}", found.profiles[found.profile]
    words = profile.task == "language"
    yield from _missing_model(f"{where}.base", profile.base.model, profile.base.revision, profile.base.gguf_file, words)
    for name, variant in found.studied(found.profile).items():
        if variant.surgery.method == "external":
            yield from _missing_model(f"variants.{name}.surgery", variant.surgery.model, variant.surgery.revision)
    other = getattr(profile.prepare, "other", None)
    texts = {
        "prepare": profile.prepare,
        "prepare.other": other,
        "reviews": profile.reviews,
        "articles": profile.articles,
    }
    for section, said in texts.items():
        if said is not None:
            yield from missing_text(f"{where}.{section}.source", said.source)


def _missing_model(
    key: str, model: str, revision: str | None, gguf_file: str | None = None, words: bool = False
) -> Iterator[str]:
    """A line for what a model lacks that is a folder of this machine. words: a tokenizer is a part of it."""
    if line := hub.mistake(key, model, gguf_file):
        yield line
    folder = Path(model)
    if not gguf_file and folder.is_dir():
        yield from _missing_parts(f"{key}.model", folder, words)
    if revision and folder.is_dir():
        yield f"{key}.revision = {revision}: {folder} is a folder of this machine; null is allowed"


def _missing_parts(key: str, folder: Path, words: bool) -> Iterator[str]:
    """A line for each part that a folder lacks of a model. words: a tokenizer is one of them."""
    if not (folder / "config.json").is_file():
        yield f"{key} = {folder}: no config.json in it; where the model is a GGUF file, gguf_file names it"
        return
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        yield f"{key} = {folder}: no weights in it ({' or '.join(WEIGHTS)})"
    for path in sorted(_shards(weights[0]) if weights else []):
        if wrong := broken(path):
            yield f"{key} = {folder}: {path.name} is {wrong}"
    if words and not any((folder / name).is_file() for name in opening.VOCABULARIES):
        yield f"{key} = {folder}: no tokenizer in it ({', '.join(opening.VOCABULARIES)})"


def broken(path: Path, kind: str = "") -> str | None:
    """What is wrong with a file of weights, text or images; None where nothing is. kind: without it the suffix says it.

    Of safetensors the header is read, of parquet what stands at its end, of others only the size.
    """
    kind = kind or path.suffix
    if not path.is_file():
        return "missing"
    if not path.stat().st_size:
        return "empty"
    try:
        if kind == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np"):
                return None
        if kind == ".parquet":
            from pyarrow import parquet

            parquet.read_metadata(path)
    except Exception:  # each reader has errors of its own
        told = "damaged, or has not arrived as a whole"
        return told if kind == path.suffix else f"no {kind[1:]} file, or {told}"
    return None


def _shards(weights: Path) -> set[Path]:
    """The files that hold a model's weights: the one given or, where it is an index, those that it names."""
    if weights.suffix != ".json":
        return {weights}
    try:
        named = {weights.with_name(name) for name in shape.read_mapping(weights)["weight_map"].values()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{weights}: it is no index of weights") from error
    if not named:
        raise UserError(f"{weights}: it names no weights")
    return named


def missing_text(key: str, source: Any) -> Iterator[str]:
    """A line for every folder and file of this machine that a source of text or images names in vain."""
    if not isinstance(source, Loaded):
        if file := getattr(source, "file", None):
            if not Path(file).is_file():
                yield f"{key}.file = {file}: {_why_none(file)}"
            elif wrong := broken(Path(file), ".parquet"):
                yield f"{key}.file = {file}: {wrong}"
        return
    path = os.path.expanduser(source.path)
    folder = "" if source.path in PACKAGED or not os.path.isdir(path) else path
    if hub.is_missing_folder(path):
        yield f"{key}.path = {source.path}: {NO_FOLDER}"
    elif source.path in PACKAGED or folder:
        kind = ".parquet" if source.path == "parquet" else ""
        for split, pattern in (source.data_files or {}).items():
            if "://" in pattern:
                continue
            where, named = f"{key}.data_files.{split} = {pattern}", os.path.join(folder, os.path.expanduser(pattern))
            found = list(_files(named))
            if not found:
                yield f"{where}: {_why_none(named)}"
            for path in found:
                if wrong := broken(Path(path), kind):
                    yield f"{where}: {path} is {wrong}"
        if not source.data_files and not any(_files(f"{glob.escape(folder)}/**")):
            yield f"{key}.path = {source.path}: {NO_FILE} in it"


def _files(pattern: str) -> Iterator[str]:
    """The files of data that a path or a pattern stands for."""
    found = dict.fromkeys([pattern, *glob.iglob(pattern, recursive=True)])
    left_out = NO_DATA - {os.path.basename(pattern)}
    return (path for path in found if os.path.basename(path) not in left_out and os.path.isfile(path))


def _why_none(path: str) -> str:
    """Why a path or a pattern stands for no file of data."""
    if os.path.isdir(path):
        return "a folder; a file is needed"
    if others := [os.path.basename(found) for found in glob.glob(path, recursive=True) if os.path.isfile(found)]:
        return f"no file of data; {others[0]} is read where it is named itself"
    return NO_FILE
