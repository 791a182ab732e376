"""Start a stage: python -m stages.run NAME --option value ...

`make repro` keeps a process that has imported all that stages import. Where it runs this very code, it forks the stage;
otherwise the stage runs in this process. Either way standard input, output and error are this process's, signals reach
the stage, and the exit status is the stage's.
"""

import os
import runpy
import sys

from stages.core.running import wire

PATIENCE = 60.0  # seconds; the server answers when its imports are done, which takes a few


def main() -> None:
    name, path = sys.argv[1] if len(sys.argv) > 1 else "", os.environ.get(wire.SERVER)
    known = sorted(file[:-3] for file in os.listdir(os.path.dirname(__file__)) if file.endswith(".py"))
    known = [stage for stage in known if stage not in ("__init__", "run")]
    if name not in known:
        sys.exit(f"usage: python -m stages.run NAME --option value ...\nNAME is one of {', '.join(known)}")
    status = served(path, name, sys.argv[2:]) if path else None
    if status is None:
        del sys.argv[1]
        runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)
    else:
        end(status)


def served(path: str, name: str, options: list[str]) -> int | None:
    """The exit status of a stage that the server at `path` has forked: minus the signal where one ended it.

    None where there is no server or it does not take the stage (it says why, and the line is shown).
    """
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(PATIENCE)
        try:
            server.connect(path)
            wire.send(server, request(name, options), (0, 1, 2))
            refused, _ = wire.receive(server)
        except (OSError, EOFError, ValueError):
            return None
        if refused:
            print(f"{name} runs by itself: {refused}", file=sys.stderr)
            return None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        server.settimeout(None)
        try:
            return wire.receive(server)[0]
        except (OSError, EOFError):
            sys.exit(f"error: the server that ran {name} was killed. Run `make repro` again.")


def request(name: str, options: list[str]) -> dict:
    """What the server has to know of this process to run a stage in its place, or to refuse it."""
    return {
        "name": name,
        "options": options,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "python": [sys.prefix, sys.version],
        "code": os.path.realpath(os.path.dirname(__file__)),
    }


def end(status: int) -> None:
    """End this process as the stage ended."""
    if status >= 0:
        sys.exit(status)
    import signal

    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)


if __name__ == "__main__":
    main()
