"""Check params.yaml, show it with its defaults, and say what the active profile needs. No model is opened.

Run from the repository's root: make check. Where params.yaml is wrong, names a file that is not there, or asks for more
memory, disk or text than there is, only the mistakes are told, and the exit status is 1.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from stages.commands import amounts, named_files
from stages.core.architecture import rules, shape
from stages.core.architecture.shape import Shape
from stages.core.process import command, devices
from stages.core.process.errors import UserError
from stages.core.running import estimates, gpus, resolved
from stages.core.running.gpus import Card
from stages.core.settings import params
from stages.core.settings.params import Params
from stages.core.settings.profiles import Base

SNAPSHOT, PROVENANCE = Path("artifacts/model"), Path("artifacts/provenance.json")


def main() -> None:
    found = params.load()
    profile = found.profiles[found.profile]
    rules.refuse(list(named_files.missing(found)))
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
            where = f"variants.{name}.surgery.model"
            lines += rules.external_mistakes(where, variant.surgery.model, known, other) if other else []
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
