"""How many chains the machine has room for, and on which CUDA devices."""

import os
import subprocess

from stages.core.settings.profiles import Runtime


def fitting(cuda: list[str], runtime: Runtime) -> int:
    """How many chains the machine has room for: one a CUDA device, else one for each `runtime.threads` cores."""
    if cuda and runtime.device != "cpu":
        return len(cuda)
    return max(1, len(os.sched_getaffinity(0)) // runtime.threads) if runtime.threads else 1


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
