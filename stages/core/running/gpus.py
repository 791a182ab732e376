"""The CUDA devices of this machine: how many chains they have room for, and what memory a stage finds on them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stages.core.process import devices as process
from stages.core.process.errors import UserError
from stages.core.settings.profiles import Runtime

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Asked in a process of its own: torch takes seconds to load and a device's memory as long as its process lives.
QUESTION = """
import json, torch
from stages.core.process import devices
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
cards = [[torch.cuda.get_device_name(i), torch.cuda.mem_get_info(i)[0]] for i in range(count)]
print(json.dumps([cards, devices.unused_card()]))
"""


@dataclass(frozen=True)
class Card:
    """A CUDA device as torch sees it, and its free memory in bytes."""

    name: str
    free: float


def fitting(cuda: list[str], runtime: Runtime) -> int:
    """How many chains the machine has room for: one a CUDA device, else one for each `runtime.threads` cores.

    A device with a number (`cuda:1`) is one device.
    """
    if cuda and runtime.device != "cpu":
        return 1 if ":" in runtime.device else len(cuda)
    return max(1, process.cores() // runtime.threads) if runtime.threads else 1


def places(cuda: list[str], runtime: Runtime, jobs: int) -> list[str | None]:
    """The device of each of so many chains that run at once; None leaves the choice to the chain.

    A device with a number is left to it: of a single visible device there is no `cuda:1`.
    """
    if len(cuda) < 2 or runtime.device == "cpu" or ":" in runtime.device:
        return [None] * jobs
    return [cuda[job % len(cuda)] for job in range(jobs)]


def environment(device: str | None) -> dict[str, str]:
    """The variables that show a process only `device`, one of `devices()`."""
    if device is None:
        return {}
    # nvidia-smi numbers devices by their place on the bus, CUDA by their speed unless told otherwise.
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {VISIBLE: device, **order}


def devices() -> list[str]:
    """The names of the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES takes them.

    A GPU that is split (MIG) is as many devices as it has parts. Where nvidia-smi fails, it says why on standard error
    and there are none.
    """
    listed = os.environ.get(VISIBLE)
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA takes no notice of what follows a name that is none.
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], text=True, capture_output=True)
    except OSError:
        return []
    if found.returncode:
        reason = " ".join((found.stderr + found.stdout).split())[:200]
        print(f"warning: nvidia-smi fails, so no GPU is counted: {reason}", file=sys.stderr)
        return []
    names = {}
    for line in found.stdout.splitlines():
        if whole := re.match(r"GPU (\d+):", line):
            number = whole.group(1)
            names[number] = []
        elif names and (part := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line)):
            names[number].append(part.group(1))
    return [name for number, parts in names.items() for name in parts or [number]]


def smallest(device: str) -> Card | None:
    """The CUDA device with the least free memory of those that stages take for `runtime.device`; None: the CPU.

    Torch is asked, for a device that it cannot use is none. Raises UserError where `device` is not there.
    """
    if device == "cpu" or (device == "auto" and not _may_be_there()):
        return None
    cards, unused = _asked() if _may_be_there() else ([], "")
    if not cards and device == "auto":
        print(f"warning: runtime.device = auto takes the CPU: {unused or 'torch sees no CUDA device'}")
        return None
    number = int(device.partition(":")[2] or 0)
    if number >= len(cards):
        reason = f" ({unused})" if unused else ""
        raise UserError(
            f"params.yaml: runtime.device = {device}: torch sees {len(cards)} CUDA devices{reason}; use cpu or auto"
        )
    return cards[number] if ":" in device else min(cards, key=lambda card: card.free)


def _may_be_there() -> bool:
    return shutil.which("nvidia-smi") is not None or any(Path("/").glob(process.CARDS))


def _asked() -> tuple[list[Card], str]:
    """Torch's devices, and why there are none although the machine has one ("": it has none)."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", QUESTION], env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True
    )
    if done.returncode:
        return [], " ".join(done.stderr.splitlines()[-1:])
    cards, unused = json.loads(done.stdout.splitlines()[-1])
    return [Card(name, free) for name, free in cards], unused
