"""Check params.yaml, show it with its defaults, and say what the active profile needs. No model is opened.

Run from the repository's root: make check. Ends with status 1 where params.yaml is wrong or something does not fit.
"""

import glob
import os
import shutil
import time
from pathlib import Path

from stages.core.architecture import rules, shape
from stages.core.architecture.shape import Shape
from stages.core.process import command, hub
from stages.core.process.errors import UserError
from stages.core.running import estimates, gpus, resolved
from stages.core.running.gpus import Card
from stages.core.settings import params
from stages.core.settings.params import Params
from stages.core.settings.profiles import Profile

SNAPSHOT, PROVENANCE = Path("artifacts/model"), Path("artifacts/provenance.json")


def main() -> None:
    found = params.load()
    print(resolved.text(found), end="\n\n")
    profile = found.profiles[found.profile]
    hub.refuse_missing_folder(f"profiles.{found.profile}.base.model", profile.base.model)
    rules.refuse(missing_files(found.profile, profile))
    known = model_of(profile.base)
    if known is None:
        print(f"params.yaml, profile {found.profile}: right in itself.")
        print(
            f"The shape of {profile.base.model} is not known here (no folder, not in the hub's cache, no answer from "
            "the hub), so nothing was held against it."
        )
        return
    rules.refuse(rules.mistakes(found, found.profile, known) + externals(found, known))
    print(f"params.yaml, profile {found.profile}: right.\nmodel: {profile.base.model}: {known}")
    for line in rules.warnings(found, known):
        print(f"warning: {line}")
    studied = found.studied(found.profile)
    costs = estimates.estimate(profile, studied, known)
    card = gpus.smallest(profile.runtime.device)
    speed = None if card else matmul_speed()
    print(table(costs, speed))
    print(f"All {len(studied)} variants; every figure is an estimate.")
    print(f"time: {duration(costs, speed) if speed else f'not estimated: it would run on {card.name}'}")
    if lacking := misfits(costs, card):
        raise UserError("\n       ".join(lacking))


def missing_files(name: str, profile: Profile) -> list[str]:
    """A line for every file of this machine that a source of the profile names in vain."""
    lines = []
    for section in ("prepare", "reviews", "articles"):
        source = getattr(getattr(profile, section), "source", None)
        if "/" in getattr(source, "path", "") and not Path(source.path).expanduser().is_dir():
            continue  # files of a data set on the hub
        for split, file in (getattr(source, "data_files", None) or {}).items():
            if "://" not in file and not glob.glob(str(Path(file).expanduser()), recursive=True):
                lines.append(f"profiles.{name}.{section}.source.data_files.{split} = {file}: no such file")
    return lines


def model_of(base) -> Shape | None:
    """The shape of the model under study: of its source or, where that cannot be seen, of the snapshot of it."""
    known = shape.of_source(base.model, base.revision, base.gguf_file)
    if known is None and PROVENANCE.is_file() and shape.read_mapping(PROVENANCE).items() >= base.model_dump().items():
        known = shape.of_folder(SNAPSHOT)
    return known


def externals(found: Params, known: Shape) -> list[str]:
    """What is wrong with the other checkpoints that variants name, as far as their shape is known."""
    lines = []
    for name, variant in found.variants.items():
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


def misfits(costs: dict, card: Card | None) -> list[str]:
    """What does not fit into memory (the GPU's, where there is one) or onto the disk. Prints what there is."""
    import psutil

    # With a GPU, weights pass through the main memory, and most of the rest lies there.
    places = {"memory": (psutil.virtual_memory().available, ["base"] if card else list(costs))}
    if card:
        places[card.name] = (card.free, list(costs))
    lines = []
    for place, (free, stages) in places.items():
        stage = max(stages, key=lambda name: costs[name].memory)
        need = costs[stage].memory
        chain = max((name for name in stages if costs[name].runs > 1), key=lambda name: costs[name].memory, default="")
        each = f", each of JOBS chains up to {size(costs[chain].memory)} ({chain})" if chain else ""
        print(f"{place}: {stage} needs about {size(need)}{each}; {size(free)} are free")
        if need > free:
            lines.append(f"stage {stage} needs about {size(need)} of {place}, {size(free)} are free")
    # Of unfinished trainings DVC keeps no copy.
    needed = 2 * sum(cost.disk for cost in costs.values()) + max(cost.scratch for cost in costs.values())
    free, there = shutil.disk_usage(".").free, occupied(Path("artifacts"))
    beside = f"{size(free)} are free beside {size(there)} of artifacts"
    print(f"disk: artifacts and DVC's cache of them need about {size(needed)}; {beside}")
    if needed > free + there:
        lines.append(f"artifacts and DVC's cache need about {size(needed)} of disk, {size(free + there)} are there")
    return lines


def occupied(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def matmul_speed(seconds: float = 0.2) -> float:
    """Operations a second of one core in a float32 matrix product, whatever else the machine does."""
    # numpy asks when it is loaded: one thread, so that the figure is one core's.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import numpy as np

    matrix, rounds = np.ones((512, 512), dtype=np.float32), 0
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
