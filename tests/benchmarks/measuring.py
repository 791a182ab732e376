"""How a figure is measured: two ways in one run, by turns; memory in a process of its own.

On an idle machine by the wall clock. On a busy one by `CORE`, the seconds that this process's threads had of the cores,
and with one thread: OMP_NUM_THREADS=1.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

WALL, CORE = "wall", "core"
CLOCKS: dict[str, Callable[[], float]] = {WALL: time.perf_counter, CORE: time.process_time}
clock = CLOCKS[WALL]


def measure_by(name: str) -> None:
    """Use the clock of this name from now on."""
    global clock
    clock = CLOCKS[name]


@dataclass
class Figure:
    """One line of the benchmark.

    ours, other: seconds (or what `unit` says) of every round. faster: the ratio is other / ours, else ours / other.
    target: what the ratio is held against, such as `>= 3`. beside: further numbers.
    """

    name: str
    ours: list[float]
    other: list[float]
    against: str
    shape: str
    target: str = ""
    faster: bool = True
    unit: str = "s"
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        ours, other = median(self.ours), median(self.other)
        return other / ours if self.faster else ours / other

    def line(self) -> str:
        def shown(values: list[float]) -> str:
            spread = f" [{min(values):.3g} to {max(values):.3g}]" if len(values) > 1 else ""
            return f"{median(values):.3g} {self.unit}{spread}"

        beside = "".join(f"; {key} {value}" for key, value in self.beside.items())
        target = f", wanted {self.target}" if self.target else ""
        return (
            f"{self.name}: {self.ratio:.2f}{target} (ours {shown(self.ours)}, {self.against} {shown(self.other)}; "
            f"{self.shape}{beside})"
        )

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def seconds(work: Callable[[], Any]) -> float:
    begin = clock()
    work()
    return clock() - begin


def alternate(ours: Callable[[], Any], other: Callable[[], Any], rounds: int = 3) -> tuple[list[float], list[float]]:
    """The seconds of every round of both, by turns, after one round that does not count where there are several."""
    if rounds > 1:
        ours(), other()
    times = [(seconds(ours), seconds(other)) for _ in range(rounds)]
    return [a for a, _ in times], [b for _, b in times]


def peak(name: str) -> dict[str, Any]:
    """What tests.benchmarks.memory prints for `name`: bytes at the peak beyond what was there before, and seconds."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"seconds": found[next(name for name, each in CLOCKS.items() if each is clock)]}
