"""Run the chains of several variants at once, by DVC's own means, and then whatever is left by a plain `dvc repro`.

make repro JOBS=4. Chains start when what they share is made. Each has a CUDA device of its own as long as there are
enough. Latencies come last, one at a time: nothing else may use the machine while they are taken. Without JOBS there
are as many chains as CUDA devices, or as the machine has cores for the profile's threads.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from stages.core.process import command
from stages.core.process.errors import UserError
from stages.core.running import leftovers
from stages.core.settings import params
from stages.core.settings.profiles import Runtime

ALONE = {"latency"}


def main(jobs: str) -> None:
    if jobs != "auto" and (not jobs.isdigit() or int(jobs) < 1):
        raise UserError(f"JOBS = {jobs}: a whole number from 1, or auto, is needed")
    mend()
    shared, chain = stages(Path("dvc.yaml"))
    cuda, asked = devices(), params.load()
    number = fitting(cuda, asked.profiles[asked.profile].runtime) if jobs == "auto" else int(jobs)
    if number > 1:
        run("repro", *shared)
        places = SimpleQueue()
        for job in range(number):
            places.put(cuda[job % len(cuda)] if len(cuda) > 1 else None)

        def follow(variant: str) -> None:
            place = places.get()
            try:
                items = [f"{stage}@{variant}" for stage in chain]
                run("--wait-for-lock", "repro", "--single-item", *items, device=place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(number) as pool:
            list(pool.map(follow, asked.variants))
    run("repro")


def mend() -> None:
    """Undo what would stop DVC: what another left that was killed while it wrote."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        done = leftovers.mend(Repo())
    except DvcException as error:
        raise UserError(str(error)) from None
    for line in done:
        print(line, file=sys.stderr)


def fitting(cuda: list[str], runtime: Runtime) -> int:
    """How many chains the machine has room for: one a CUDA device, else one for each `runtime.threads` cores."""
    if cuda and runtime.device != "cpu":
        return len(cuda)
    return max(1, len(os.sched_getaffinity(0)) // runtime.threads) if runtime.threads else 1


def stages(graph: Path) -> tuple[list[str], list[str]]:
    """The stages that variants share and those of each variant's chain, both in the order of dvc.yaml."""
    from ruamel.yaml import YAML

    entries = YAML(typ="safe", pure=True).load(graph.read_text(encoding="utf-8"))["stages"]
    chain = [name for name, entry in entries.items() if "foreach" in entry and name not in ALONE]
    shared = [name for name, entry in entries.items() if "foreach" not in entry and not entry.get("frozen")]
    return [name for name in shared if name != "report"], chain


def devices() -> list[str]:
    """The names of the CUDA devices that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        try:
            found = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True).stdout.splitlines()
        except FileNotFoundError:
            found = []
        listed = ",".join(map(str, range(len(found))))
    return [name for name in listed.split(",") if name]


def run(*arguments: str, device: str | None = None) -> None:
    """One call of DVC; ends the program where it fails (DVC has said why)."""
    chosen = {"CUDA_VISIBLE_DEVICES": device} if device is not None else {}
    code = subprocess.run(["dvc", *arguments], env={**os.environ, **chosen}).returncode
    if code:
        raise UserError(f"`dvc {' '.join(arguments)}` failed (exit status {code})")


if __name__ == "__main__":
    command.entry(main)
