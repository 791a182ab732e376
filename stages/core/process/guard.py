"""One writer at a time: a stage that DVC runs has no twin, and does not outlive DVC.

A killed DVC leaves its stage running, and would start a second one on the same files at the next call.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path

from stages.core.process.errors import UserError

DVC = "SHARED_FFN_DVC"  # the environment variable by which `make repro` names the process of DVC
PATIENCE = 10.0  # seconds; an orphan needs less than one to see that its parent is gone


@contextmanager
def guarded(environment: Mapping[str, str] = os.environ, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of the stage that DVC is running, and end this process as soon as that DVC ends.

    DVC names stage and repository in `environment`; without them (a command of one's own) nothing happens. Ends the
    process where the DVC that `make repro` named is gone already. Raises
    UserError where another process has held the lock for `patience` seconds.
    """
    if "DVC_STAGE" not in environment:
        yield
        return
    import fcntl

    threading.Thread(target=_end_with, args=(_dvc(environment),), daemon=True).start()
    stage = environment["DVC_STAGE"]
    path = Path(environment["DVC_ROOT"], ".dvc", "tmp", "running", f"{stage.replace('/', '_')}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock is the process's: however it ends, the system lets go of it.
    with path.open("a+") as file:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    file.seek(0)
                    raise UserError(
                        f"stage {stage} is already being run by process {file.read()}: wait for it, or end it"
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def end_with_parent() -> None:
    """Let a process of multiprocessing end with its parent, and at once on Ctrl-C, which reaches both."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C wait; a process that is started here keeps it waiting until it calls `end_with_parent`.

    Before that, while it still imports, Ctrl-C would be a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dvc(environment: Mapping[str, str]):
    """The DVC that the environment names, or the one above this process (a shell may stand between), or the parent."""
    import psutil

    if DVC in environment:
        try:
            return psutil.Process(int(environment[DVC]))
        except psutil.NoSuchProcess:  # killed before this process looked
            os._exit(1)
    above = psutil.Process().parents()
    return next((each for each in above if any("dvc" in Path(word).name for word in _command(each)[:3])), above[0])


def _command(process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:  # someone else's, or gone
        return []


def _end_with(process) -> None:
    import psutil

    try:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    except psutil.Error:
        pass
    os._exit(1)
