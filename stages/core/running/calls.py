"""Runs DVC and writes its output to logs, one for each stage, instead of the screen."""

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from stages.core.process.progress import REPORT
from stages.core.running.board import Board
from stages.core.running.screen import report_file

# What DVC prints about a stage. With another wording the screen shows fewer lines; nothing else depends on it.
BEGIN = re.compile(r"Running stage '(.+)':$")
SKIP = re.compile(r"Stage '(.+)' didn't change, skipping$")
RESTORE = re.compile(r"Stage '(.+)' is cached - skipping run, checking out outputs$")
RECORD = re.compile(r"(Updating|Generating) lock file '.+'$")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DVC = "dvc"  # name of the log for what DVC prints between two stages
KEPT = 200  # last lines of output that are searched for the reason of a failure
SHOWN = 8  # lines of the reason that are shown


@dataclass(frozen=True)
class Failure:
    """A call of DVC that failed: its stage or None, the reason, and the log that says more."""

    stage: str | None
    reason: list[str]
    log: Path

    def __str__(self) -> str:
        what = f"stage {self.stage} failed" if self.stage else "DVC failed"
        return "\n".join([f"{what}:", *(f"  {line}" for line in self.reason), f"  log: {self.log}"])


class Calls:
    """Runs DVC, tells a board and a screen what it does, and ends it when asked to."""

    def __init__(self, board: Board, screen: Any, logs: Path, reports: Path):
        self.board, self.screen, self.logs, self.reports = board, screen, logs, reports
        self.stopped = False
        self.children: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        logs.mkdir(parents=True, exist_ok=True)
        self.log(None).write_text("", encoding="utf-8")

    def log(self, stage: str | None) -> Path:
        """The path of a stage's log; for None, of the log of what belongs to no stage."""
        return self.logs / f"{(stage or DVC).replace('/', '_')}.log"

    def run(self, name: str, *arguments: str, surroundings: Mapping[str, str] | None = None) -> Failure | None:
        """Run DVC once. Returns None where it succeeded. name: what the screen calls it."""
        variables = {**os.environ, **(surroundings or {}), REPORT: str(report_file(self.reports, name))}
        command = [sys.executable, "-m", "stages.core.running.dvc_child", str(os.getpid()), *arguments]
        with self.lock:
            if self.stopped:
                return None
            child = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, encoding="utf-8", errors="replace",
            )  # fmt: skip
            self.children.add(child)
        self.board.open(name)
        try:
            with child.stdout:
                stage, said = self._follow(name, child.stdout)
            status = child.wait()
            if not status:
                self._end(name, stage)
            elif not self.stopped:
                return Failure(stage, reason(said, status) if stage else said[-SHOWN:], self.log(stage))
            return None
        finally:
            self.board.close(name)
            with self.lock:
                self.children.discard(child)

    def stop(self, patience: float) -> None:
        """End every call: those that do not end by themselves within `patience` seconds are terminated.

        Their stages end with them (see `process.guard`).
        """
        with self.lock:
            self.stopped = True
            children = list(self.children)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(patience)
                continue
            child.terminate()
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
                continue
            child.kill()

    def _follow(self, name: str, lines: Iterable[str]) -> tuple[str | None, list[str]]:
        """Write DVC's output to the logs until it ends. Returns the stage that it ended in, and its last lines."""
        stage, said, log = None, deque(maxlen=KEPT), self._open(None)
        try:
            for line in lines:
                text = COLOUR.sub("", line.rstrip("\n"))
                begun, restored, skipped = (words.match(text) for words in (BEGIN, RESTORE, SKIP))
                # DVC says that it records a stage only where its lock file changes.
                if begun or (stage and (restored or skipped or RECORD.match(text))):
                    self._end(name, stage)
                    stage = begun[1] if begun else None
                    if stage:
                        self.board.begin(name, stage)
                    log.close()
                    log = self._open(stage)
                    said.clear()
                if restored:
                    self.board.skip(restored[1], restored=True)
                    self.screen.stage(restored[1], "from the run cache")
                elif skipped:
                    self.board.skip(skipped[1])
                log.write(text + "\n")
                said.append(text)
        finally:
            log.close()
        return stage, list(said)

    def _open(self, stage: str | None) -> TextIO:
        """The log, open for writing. The log of a stage is overwritten, the common one is appended to."""
        return self.log(stage).open("w" if stage else "a", encoding="utf-8", buffering=1)

    def _end(self, name: str, stage: str | None) -> None:
        """Record that the stage of a call has succeeded."""
        if stage:
            spent = self.board.end(name)
            self.screen.stage(stage, f"{spent:.1f} s")


def reason(said: list[str], status: int) -> list[str]:
    """The lines of output that explain a failure: the error line, or the end of a traceback, or DVC's own message."""
    lines = [line for line in said if line.strip()]
    ends = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    own, theirs = (lines[: ends[-1]], lines[ends[-1] :]) if ends else (lines, [])
    own = [line for line in own if not line.startswith(("Running stage ", "> "))]
    starts = [number for number, line in enumerate(own) if line.startswith("error: ")]
    if not starts and any(line.startswith("Traceback ") for line in own):
        starts = [number for number, line in enumerate(own) if not line.startswith((" ", "\t"))]
    if starts:
        return own[starts[-1] :][:SHOWN]
    # No error line: it may have been killed. DVC repeats the whole command, which is left out.
    told = [re.sub(r"failed to run: .*, exited", "exited", line) for line in theirs]
    return [*own[-2:], *told][:SHOWN] or [f"exit status {status}"]
