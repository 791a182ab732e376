"""The progress of `make repro`: stages done, stages running, and the time left."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stages.core.running.graph import Plan

ENOUGH = 2  # an estimate needs the times of this many stages of a kind: the first may be an exception


@dataclass(frozen=True)
class Work:
    """What one call of DVC is doing: the stage and when it began; None between two stages."""

    name: str  # of the call
    stage: str | None
    since: float


@dataclass(frozen=True)
class Left:
    """Seconds that a run will still take. `more`: it will take longer, as some stages have no known time yet."""

    seconds: float
    more: bool


class Board:
    """The state of a run. Several threads report to it; times are seconds of `clock`."""

    def __init__(self, plan: Plan, outdated: Iterable[str], jobs: int = 1, clock: Callable[[], float] = time.monotonic):
        self.plan, self.jobs, self.clock = plan, jobs, clock
        self.stages = set(plan.stages())
        self.began = clock()
        self.done = self.stages - set(outdated)
        self.ran: dict[str, float] = {}
        self.restored: set[str] = set()
        self.pauses: list[float] = []  # between two stages of a call: DVC records one and looks at the next
        self.work: dict[str, Work] = {}
        self.lock = threading.Lock()

    def open(self, call: str) -> None:
        """A call of DVC begins."""
        with self.lock:
            self.work[call] = Work(call, None, self.clock())

    def begin(self, call: str, stage: str) -> None:
        """A call of DVC begins to run a stage."""
        with self.lock:
            now = self.clock()
            self.pauses.append(now - self.work[call].since)
            self.work[call] = Work(call, stage, now)

    def end(self, call: str) -> float:
        """The stage of a call is done; returns the seconds that it took."""
        with self.lock:
            work = self.work[call]
            spent = self.clock() - work.since
            self.ran[work.stage] = spent
            self.done.add(work.stage)
            self.work[call] = Work(call, None, self.clock())
            return spent

    def skip(self, stage: str, restored: bool = False) -> None:
        """A stage need not run: nothing changed, or DVC has its outputs from earlier (`restored`)."""
        with self.lock:
            self.done.add(stage)
            if restored:
                self.restored.add(stage)

    def close(self, call: str) -> None:
        """A call of DVC has ended."""
        with self.lock:
            self.work.pop(call, None)

    def at_work(self) -> list[Work]:
        """What every call does, in the order in which they began."""
        with self.lock:
            return list(self.work.values())

    def counts(self) -> tuple[int, int]:
        """How many of the stages are done, and how many there are."""
        with self.lock:
            return len(self.done & self.stages), len(self.stages)

    def left(self) -> Left | None:
        """The time left, from the median time of each kind of stage; None while too few stages have run.

        The mean pause between two stages is added. Chains share the jobs, but a chain takes at least as long as its
        own stages one after the other.
        """
        with self.lock:
            typical, known = self._typical(), defaultdict(int)
            for stage in self.ran:
                known[kind(stage)] += 1
            pause = statistics.mean(self.pauses) if self.pauses else 0.0
            begun = {work.stage: self.clock() - work.since for work in self.work.values() if work.stage}
            rest = self.stages - self.done

            def seconds(stages: Iterable[str]) -> float:
                waiting = [stage for stage in stages if stage in rest]
                return sum(max(0.0, pause + typical.get(kind(stage), 0.0) - begun.get(stage, 0.0)) for stage in waiting)

            chains = [seconds(chain) for chain in self.plan.chains.values()]
            parallel = [stage for stage in rest if stage not in self.plan.alone]
            if not self.ran or any(known[kind(stage)] < min(ENOUGH, self._of_kind(stage)) for stage in parallel):
                return None
            more = any(kind(stage) not in typical for stage in rest)
            whole = seconds(self.plan.shared) + max(sum(chains) / self.jobs, *chains, 0.0) + seconds(self.plan.alone)
            nothing_known = rest and not any(kind(stage) in typical for stage in rest)
            return None if nothing_known else Left(whole, more)

    def _typical(self) -> dict[str, float]:
        times = defaultdict(list)
        for stage, spent in self.ran.items():
            times[kind(stage)].append(spent)
        return {name: statistics.median_high(found) for name, found in times.items()}

    def _of_kind(self, stage: str) -> int:
        return sum(kind(other) == kind(stage) for other in self.stages)


def kind(stage: str) -> str:
    """The name that a stage has in dvc.yaml, whatever its variant."""
    return stage.partition("@")[0]
