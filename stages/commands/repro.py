"""Run the study: make repro, or make repro JOBS=4.

First what all variants share, then the chains of several variants at once, by DVC's own means, and then whatever is
left by a plain `dvc repro`. Each chain has a CUDA device of its own as long as there are enough. Latencies come last,
one at a time: nothing else may use the machine while they are taken. Without JOBS there are as many chains as CUDA
devices, or as the machine has cores for the profile's threads.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from stages.core.process import command
from stages.core.process.errors import UserError
from stages.core.running import gpus, graph, leftovers
from stages.core.settings import params


def main(jobs: str) -> None:
    if jobs != "auto" and (not jobs.isdigit() or int(jobs) < 1):
        raise UserError(f"JOBS = {jobs}: a whole number from 1, or auto, is needed")
    mend()
    cuda, asked = gpus.devices(), params.load()
    plan, runtime = graph.plan(Path("dvc.yaml"), asked.variants), asked.profiles[asked.profile].runtime
    number = gpus.fitting(cuda, runtime) if jobs == "auto" else int(jobs)
    if number > 1:
        run("repro", *plan.shared)
        free = SimpleQueue()
        for place in gpus.places(cuda, runtime, number):
            free.put(place)

        def follow(chain: list[str]) -> None:
            device = free.get()
            try:
                run("--wait-for-lock", "repro", "--single-item", *chain, device=device)
            finally:
                free.put(device)

        with ThreadPoolExecutor(number) as pool:
            list(pool.map(follow, plan.chains.values()))
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


def run(*arguments: str, device: str | None = None) -> None:
    """One call of DVC; ends the program where it fails (DVC has said why)."""
    # Not the script `dvc`: it names the folder in which it was installed, and fails once that is renamed.
    code = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], env={**os.environ, **gpus.environment(device)}
    ).returncode
    if code:
        raise UserError(f"`dvc {' '.join(arguments)}` failed (exit status {code})")


if __name__ == "__main__":
    command.entry(main)
