"""Run the chains of several variants at once, by DVC's own means, and then whatever is left by a plain `dvc repro`.

make repro JOBS=4. Chains start when what they share is made. Each has a CUDA device of its own as long as there are
enough. Latencies come last, one at a time: nothing else may use the machine while they are taken.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from stages.core import params, runtime
from stages.core.errors import UserError

ALONE = {"latency"}


def main(jobs: str) -> None:
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"JOBS = {jobs}: a whole number from 1 is needed")
    shared, chain = stages(Path("dvc.yaml"))
    if int(jobs) > 1:
        run("repro", *shared)
        known, places = devices(), SimpleQueue()
        for job in range(int(jobs)):
            places.put(known[job % len(known)])

        def follow(variant: str) -> None:
            place = places.get()
            try:
                for stage in chain:
                    run("--wait-for-lock", "repro", "--single-item", f"{stage}@{variant}", device=place)
            finally:
                places.put(place)

        with ThreadPoolExecutor(int(jobs)) as pool:
            list(pool.map(follow, params.variants()))
    run("repro")


def stages(graph: Path) -> tuple[list[str], list[str]]:
    """The stages that variants share and those of each variant's chain, both in the order of dvc.yaml."""
    from ruamel.yaml import YAML

    entries = YAML(typ="safe", pure=True).load(graph.read_text(encoding="utf-8"))["stages"]
    chain = [name for name, entry in entries.items() if "foreach" in entry and name not in ALONE]
    shared = [name for name, entry in entries.items() if "foreach" not in entry and not entry.get("frozen")]
    return [name for name in shared if name != "report"], chain


def devices() -> list[str | None]:
    """The CUDA devices that a chain may be given, [None] where a single one, or none, is all there is."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        try:
            found = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True).stdout.splitlines()
        except FileNotFoundError:
            found = []
        listed = ",".join(map(str, range(len(found))))
    names = [name for name in listed.split(",") if name]
    return names if len(names) > 1 else [None]


def run(*arguments: str, device: str | None = None) -> None:
    """One call of DVC; ends the program where it fails (DVC has said why)."""
    chosen = {"CUDA_VISIBLE_DEVICES": device} if device is not None else {}
    code = subprocess.run(["dvc", *arguments], env={**os.environ, **chosen}).returncode
    if code:
        raise UserError(f"`dvc {' '.join(arguments)}` failed (exit status {code})")


if __name__ == "__main__":
    runtime.entry(main)
