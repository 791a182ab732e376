"""Run the study: make repro, or make repro JOBS=4.

First what all variants share, side by side as far as it can be, then the chains of several variants at once, by DVC's
own means, and then whatever is left by a plain `dvc repro`. Each chain has a CUDA device of its own as long as there
are enough. Latencies come last, one at a time: nothing else may use the machine while they are taken. Without JOBS
there are as many chains as CUDA devices, or as the machine has cores for the profile's threads.

What libraries, stages and DVC say is in artifacts/logs, a file for each stage.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from stages.core.process import command, scratch
from stages.core.process.errors import UserError
from stages.core.running import gpus, graph, leftovers, repository, screen, server
from stages.core.running.board import Board
from stages.core.running.calls import Calls, Failure
from stages.core.settings import params
from stages.core.settings.variants import Variant

LOGS = Path("artifacts/logs")


def main(jobs: str) -> None:
    if jobs != "auto" and (not jobs.isdigit() or int(jobs) < 1):
        raise UserError(f"JOBS = {jobs}: a whole number from 1, or auto, is needed")
    repo = repository.opened()
    for line in leftovers.mend(repo):
        print(line, file=sys.stderr)
    cuda, asked = gpus.devices(), params.load()
    plan = graph.plan(Path("dvc.yaml"), searching_first(asked.studied(asked.profile)))
    runtime = asked.profiles[asked.profile].runtime
    number = gpus.fitting(cuda, runtime) if jobs == "auto" else int(jobs)
    board = Board(plan, repository.outdated(repo, plan.stages()), number)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, interrupt)
    with tempfile.TemporaryDirectory() as reports:
        shown = screen.chosen(board, Path(reports))
        calls = Calls(board, shown, LOGS, Path(reports))
        # In a thread, so that a signal meets this one at rest.
        with starting(board) as variables, shown, ThreadPoolExecutor(1) as thread:
            try:
                failures = thread.submit(study, calls, gpus.places(cuda, runtime, number), variables).result()
            except KeyboardInterrupt as stopped:
                calls.stop(patience=0 if stopped.args else 3)
                shown.say(f"stopped: {screen.summary(board)}; `make repro` goes on from here")
                sys.exit(130)
    if failures:
        raise UserError(f"{screen.summary(board)}; failed: {', '.join(each.stage or 'DVC' for each in failures)}")
    shown.say(screen.summary(board))


def searching_first(variants: Mapping[str, Variant]) -> list[str]:
    """The names of variants, those first whose windows are searched for: a long chain that begins last runs alone."""
    return sorted(variants, key=lambda name: variants[name].windows.choose in ("none", "blocks"))


@contextmanager
def starting(board: Board) -> Iterator[dict[str, str]]:
    """The variables by which stages find a process that has imported all they need, and a folder for scratch.

    None where hardly any will run. The folder lies in that of the process, which removes it even if this one is killed.
    """
    if len(board.stages - board.done) < 2:
        yield {}
        return
    with server.serving(log=LOGS / "server.log") as found:
        folders = [Path(path).with_name("scratch") for path in found.values()]
        for folder in folders:
            folder.mkdir()
        yield found | {scratch.SCRATCH: str(folder) for folder in folders}


def study(calls: Calls, places: list[str | None], variables: Mapping[str, str] = {}) -> list[Failure]:
    """Run everything, a chain on each of the `places`, every stage with `variables`; returns what failed."""
    board, plan, failures = calls.board, calls.board.plan, []

    def run(name: str, *arguments: str, place: str | None = None) -> None:
        if failures:
            return
        if failure := calls.run(name, *arguments, surroundings={**gpus.environment(place), **variables}):
            failures.append(failure)
            calls.screen.say(str(failure))
            if board.at_work():
                calls.screen.say("Chains that are at work are finished first; no other begins.")

    if len(places) > 1:
        trunk = plan.trunk()
        if set(trunk) - board.done:
            run("shared stages", "repro", *trunk)
        free = SimpleQueue()
        for place in places:
            free.put(place)

        def follow(name: str, stages: list[str]) -> None:
            place = free.get()
            try:
                run(name, "--wait-for-lock", "repro", "--single-item", *stages, place=place)
            finally:
                free.put(place)

        # What is up to date needs no call: the last one sees to it that nothing is forgotten.
        for side_by_side in ({f"shared {branch[0]}": branch for branch in plan.branches}, plan.chains):
            waiting = [(name, stages) for name, stages in side_by_side.items() if set(stages) - board.done]
            with ThreadPoolExecutor(len(places)) as pool:
                list(pool.map(lambda named: follow(*named), waiting))
    if board.stages - board.done:
        run("other stages", "repro")
    return failures


def interrupt(number: int, _) -> None:
    """End as by Ctrl-C, but at once: of such a signal DVC and the stages know nothing."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    command.entry(main)
