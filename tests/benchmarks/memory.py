"""The peak memory of one piece of work, in a process of its own: python -m tests.benchmarks.memory NAME prints JSON."""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import peer, shapes, work
from tests.benchmarks.measuring import CLOCKS


def align(way: Callable) -> Callable[[], Any]:
    seen, weights = shapes.activations(4), work.weights(4)
    return lambda: way(seen, weights)


def tune(what: str) -> Callable[[], Any]:
    return work.tuning(what)


def wide() -> Callable[[], Any]:
    """One pair of layers of 14,336 neurons: moments of one, correlations, an assignment."""
    rows = [torch.randn(shapes.TOKENS, 14336, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    return lambda: work.one_pair(rows)


WORK: dict[str, Callable[[], Callable[[], Any]]] = {
    "align_ours": lambda: align(work.align_window),
    "align_peer": lambda: align(peer.merge_window),
    "tune_deltas": lambda: tune("deltas"),
    "tune_all": lambda: tune("all"),
    "wide": wide,
}


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def main(name: str) -> None:
    done = WORK[name]()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, begin = resident("VmRSS"), {name: clock() for name, clock in CLOCKS.items()}
    done()
    spent = {name: clock() - begin[name] for name, clock in CLOCKS.items()}
    print(json.dumps({**spent, "peak": resident("VmHWM") - before, "whole": resident("VmHWM")}))


if __name__ == "__main__":
    main(sys.argv[1])
