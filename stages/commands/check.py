"""Check params.yaml, show it with its defaults, and say what the active profile needs. No model is opened.

Run from the repository's root: make check. Where params.yaml is wrong, names a file that is not there, or asks for more
memory, disk or text than there is, only the mistakes are told, and the exit status is 1.
"""

import glob
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.commands import amounts
from stages.core.architecture import opening, rules, shape
from stages.core.architecture.shape import Shape
from stages.core.process import command, devices, hub
from stages.core.process.errors import UserError
from stages.core.running import estimates, gpus, resolved
from stages.core.running.gpus import Card
from stages.core.settings import params
from stages.core.settings.params import Params
from stages.core.settings.profiles import Base
from stages.core.settings.texts import PACKAGED, Loaded

NO_FOLDER, NO_FILE = "there is no such folder", "no such file"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SNAPSHOT, PROVENANCE = Path("artifacts/model"), Path("artifacts/provenance.json")


def main() -> None:
    found = params.load()
    profile = found.profiles[found.profile]
    rules.refuse(list(missing_files(found)))
    known, shown = model_of(f"profiles.{found.profile}.base", profile.base), resolved.text(found)
    if known is None:
        print(f"{shown}\n\nparams.yaml, profile {found.profile}: right in itself.")
        print(
            f"The shape of {profile.base.model} is not known here (no folder, not in the hub's cache, no answer from "
            "the hub), so nothing was held against it."
        )
        return
    lengths = amounts.mistakes(found.profile, profile, known)
    rules.refuse(rules.mistakes(found, found.profile, known) + externals(found, known) + lengths)
    studied = found.studied(found.profile)
    costs, card = estimates.estimate(profile, studied, known), gpus.smallest(profile.runtime.device)
    room, lacking = places(costs, card)
    if lacking:
        raise UserError("\n       ".join(lacking))
    print(f"{shown}\n\nparams.yaml, profile {found.profile}: right.\nmodel: {profile.base.model}: {known}")
    anchored = (
        f"params.yaml: line {line}: no -S of dvc exp reaches a section with an anchor" for line in params.anchors()
    )
    for line in [*anchored, *crowded(found), *rules.warnings(found, known)]:
        print(f"warning: {line}")
    speed = None if card else matmul_speed()
    print(table(costs, speed))
    print(f"All {len(studied)} variants; every figure is an estimate.")
    print(f"time: {duration(costs, speed) if speed else f'not estimated: it would run on {card.name}'}")
    print("\n".join(room))


def crowded(found: Params) -> Iterator[str]:
    """A line where the active profile asks for more threads than there are cores: they would wait for each other."""
    threads, cores = found.profiles[found.profile].runtime.threads, devices.cores()
    if threads and threads > cores:
        yield f"profiles.{found.profile}.runtime.threads = {threads}: {cores} cores are there"


def missing_files(found: Params) -> Iterator[str]:
    """A line for every folder and file of this machine that the active profile or a variant names in vain."""
    where, profile = f"profiles.{found.profile}", found.profiles[found.profile]
    words = profile.task == "language"
    yield from missing_model(f"{where}.base", profile.base.model, profile.base.revision, profile.base.gguf_file, words)
    for name, variant in found.studied(found.profile).items():
        if variant.surgery.method == "external":
            yield from missing_model(f"variants.{name}.surgery", variant.surgery.model, variant.surgery.revision)
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


def missing_model(
    key: str, model: str, revision: str | None, gguf_file: str | None = None, words: bool = False
) -> Iterator[str]:
    """A line for what a model lacks that is a folder of this machine. words: a tokenizer is a part of it."""
    if line := hub.mistake(key, model, gguf_file):
        yield line
    folder = Path(model)
    if not gguf_file and folder.is_dir():
        yield from missing_parts(f"{key}.model", folder, words)
    if revision and folder.is_dir():
        yield f"{key}.revision = {revision}: {folder} is a folder of this machine; null is allowed"


def missing_parts(key: str, folder: Path, words: bool) -> Iterator[str]:
    """A line for each part that a folder lacks of a model. words: a tokenizer is one of them."""
    if not (folder / "config.json").is_file():
        yield f"{key} = {folder}: no config.json in it; where the model is a GGUF file, gguf_file names it"
        return
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        yield f"{key} = {folder}: no weights in it ({' or '.join(WEIGHTS)})"
    for path in sorted(shards(weights[0]) if weights else []):
        if wrong := broken(path):
            yield f"{key} = {folder}: {path.name} is {wrong}"
    if words and not any((folder / name).is_file() for name in opening.VOCABULARIES):
        yield f"{key} = {folder}: no tokenizer in it ({', '.join(opening.VOCABULARIES)})"


def broken(path: Path) -> str | None:
    """What is wrong with a file of weights, text or images; None where nothing is.

    Of safetensors the header is read, of parquet what stands at its end, of others only the size.
    """
    if not path.is_file():
        return "missing"
    if not path.stat().st_size:
        return "empty"
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np"):
                return None
        if path.suffix == ".parquet":
            from pyarrow import parquet

            parquet.read_metadata(path)
    except Exception:  # each reader has errors of its own
        return "damaged, or has not arrived as a whole"
    return None


def shards(weights: Path) -> set[Path]:
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
        if (file := getattr(source, "file", None)) and not Path(file).is_file():
            yield f"{key}.file = {file}: {NO_FILE}"
        return
    path = os.path.expanduser(source.path)
    folder = "" if source.path in PACKAGED or not os.path.isdir(path) else path
    if hub.is_missing_folder(path):
        yield f"{key}.path = {source.path}: {NO_FOLDER}"
    elif source.path in PACKAGED or folder:
        for split, pattern in (source.data_files or {}).items():
            if "://" in pattern:
                continue
            found = list(files(os.path.join(folder, os.path.expanduser(pattern))))
            if not found:
                is_folder = os.path.isdir(os.path.join(folder, os.path.expanduser(pattern)))
                yield f"{key}.data_files.{split} = {pattern}: {'a folder; a file is needed' if is_folder else NO_FILE}"
            for path in found:
                if wrong := broken(Path(path)):
                    yield f"{key}.data_files.{split} = {pattern}: {path} is {wrong}"
        if not source.data_files and not any(files(f"{glob.escape(folder)}/**")):
            yield f"{key}.path = {source.path}: {NO_FILE} in it"


def files(pattern: str) -> Iterator[str]:
    """The files that a path or a pattern stands for. What explains a folder is none of its data."""
    found = dict.fromkeys([pattern, *glob.iglob(pattern, recursive=True)])
    return (path for path in found if os.path.basename(path) != "README.md" and os.path.isfile(path))


def model_of(key: str, base: Base) -> Shape | None:
    """The shape of the model under study: of its source or, where that cannot be seen, of the snapshot of it.

    Raises UserError with the key of what cannot be read.
    """
    try:
        known = shape.of_source(base.model, base.revision, base.gguf_file)
    except UserError as error:
        name = "gguf_file" if base.gguf_file else "model"
        raise UserError(f"{params.PARAMS}: {key}.{name} = {getattr(base, name)}: {error}") from error
    if known is None and PROVENANCE.is_file() and shape.read_mapping(PROVENANCE).items() >= base.model_dump().items():
        known = shape.of_folder(SNAPSHOT)
    return known


def externals(found: Params, known: Shape) -> list[str]:
    """What is wrong with the other checkpoints that variants name, as far as their shape is known."""
    lines = []
    for name, variant in found.studied(found.profile).items():
        if variant.surgery.method == "external":
            other = shape.of_source(variant.surgery.model, variant.surgery.revision)
            lines += rules.external_mistakes(name, known, other) if other else []
    return lines


def table(costs: dict, speed: float | None) -> str:
    """One line a stage: memory of one process, disk of all variants, time of one core for all variants."""
    lines = [f"{'stage':<11} {'runs':>5} {'memory':>9} {'disk':>9} {'core time':>14}"]
    for stage, cost in costs.items():
        spent = f"{'over ' * bool(cost.unknown)}{clock(cost.seconds(speed))}" if speed else ""
        lines.append(
            f"{stage:<11} {cost.runs:>5} {size(cost.memory):>9} {size(cost.disk) if cost.disk else '':>9} {spent:>14}"
        )
    return "\n".join(line.rstrip() for line in lines)


def duration(costs: dict, speed: float) -> str:
    """The whole time of one core, what is not in it, and what several cores can make of it."""
    whole, cores = sum(cost.seconds(speed) for cost in costs.values()), os.cpu_count() or 1
    unknown = list(dict.fromkeys(cost.unknown for cost in costs.values() if cost.unknown))
    text = f"{'more than' if unknown else 'about'} {clock(whole)} of one core, whose matrix product here does "
    text += f"{rounded(speed / 1e9)} GFLOP/s; JOBS says how many of the {cores} work at a time"
    return text + (f"\n      not counted, as data sets differ in size: {', '.join(unknown)}" if unknown else "")


def places(costs: dict, card: Card | None) -> tuple[list[str], list[str]]:
    """Lines of what memory (the GPU's, where there is one) and disk are needed and free, and of what does not fit."""
    import psutil

    # With a GPU, weights pass through the main memory, and most of the rest lies there.
    there = {"memory": (psutil.virtual_memory().available, ["base"] if card else list(costs))}
    if card:
        there[card.name] = (card.free, list(costs))
    room, lacking = [], []
    for place, (free, stages) in there.items():
        stage = max(stages, key=lambda name: costs[name].memory)
        need = costs[stage].memory
        chain = max((name for name in stages if costs[name].runs > 1), key=lambda name: costs[name].memory, default="")
        each = f", each of JOBS chains up to {size(costs[chain].memory)} ({chain})" if chain else ""
        room.append(f"{place}: {stage} needs about {size(need)}{each}; {size(free)} are free")
        if need > free:
            lacking.append(f"stage {stage} needs about {size(need)} of {place}, {size(free)} are free")
    # Of unfinished trainings DVC keeps no copy.
    needed = 2 * sum(cost.disk for cost in costs.values()) + max(cost.scratch for cost in costs.values())
    free, taken = shutil.disk_usage(".").free, occupied(Path("artifacts"))
    beside = f"{size(free)} are free beside {size(taken)} of artifacts"
    room.append(f"disk: artifacts and DVC's cache of them need about {size(needed)}; {beside}")
    if needed > free + taken:
        most = max(costs, key=lambda name: costs[name].disk)
        lacking.append(
            f"artifacts and DVC's cache need about {size(needed)} of disk, {size(free + taken)} are there; stage "
            f"{most}, run {costs[most].runs} times, takes {size(2 * costs[most].disk)}"
        )
    return room, lacking


def occupied(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def matmul_speed(seconds: float = 0.2) -> float:
    """Operations a second of one core in a float32 matrix product, whatever else the machine does."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    matrix, rounds = np.ones((512, 512), dtype=np.float32), 0
    with threadpool_limits(1, user_api="blas"):
        matrix @ matrix
        start = time.process_time()
        while (spent := time.process_time() - start) < seconds:
            matrix @ matrix
            rounds += 1
    return 2 * len(matrix) ** 3 * rounds / spent


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    if count < 1e6:
        return "under 1 MB"
    return f"{rounded(count / 1e9)} GB" if count >= 0.995e9 else f"{rounded(count / 1e6)} MB"


def clock(seconds: float) -> str:
    """A time in the unit that fits."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * scale:
            return f"{rounded(seconds / scale)} {unit}"
    return f"{rounded(seconds)} s"


def rounded(value: float) -> str:
    """To two digits: no estimate here is better than that."""
    return f"{float(f'{value:.2g}'):g}"


if __name__ == "__main__":
    command.entry(main)
