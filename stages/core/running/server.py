"""The process that `make repro` keeps for its stages: it has imported what they import, and forks for each one.

A stage's own imports take seconds of a core, a fork takes milliseconds. A child computes what a process of its own
would have: environment, folder, arguments and standard streams are the client's, threads and random states are as in
a new process, and it runs the same module in the same way. So the server refuses whatever would differ: other code,
another Python, another environment (libraries read it when they are imported).

The socket lies in a folder that only its owner can enter. The server ends when the process that started it does,
however that was; a child ends with its client, with the DVC that `make repro` names (see `process.guard`), and with
the server.
"""

import atexit
import gc
import hashlib
import importlib
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.core.architecture.families import FAMILIES
from stages.core.process import guard, progress
from stages.core.running import wire

ROOT = Path(__file__).resolve().parents[3]
# What may differ between the server and a stage: no library reads it when it is imported.
FREE = {
    *("DVC_STAGE", "DVC_ROOT", guard.DVC, progress.REPORT, wire.SERVER),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PWD", "OLDPWD", "SHLVL", "_"),
}
OTHERS = ("running", "reporting")  # rooms of commands, and of a single stage
CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# What stages import where they need it, and so nobody has imported with the rooms.
LIBRARIES = (
    "accelerate",
    "datasets",
    "evaluate",
    "pandas",
    "psutil",
    "pyarrow.parquet",
    "ruamel.yaml",
    "safetensors.torch",
    "scipy.optimize",
    "tqdm",
)


def modules() -> list[str]:
    """The modules that a stage may need: those of the rooms, libraries, and the families' classes."""
    rooms = sorted(path for path in (ROOT / "stages" / "core").glob("*/*.py") if path.parent.name not in OTHERS)
    own = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in rooms]
    types = [name for family in FAMILIES for name in family.model_types]
    # First what sets the variables that libraries read when they are imported, as in a stage.
    return [
        "stages.core.process.command",
        *own,
        *LIBRARIES,
        *(f"transformers.models.{name}.modeling_{name}" for name in types),
    ]


@contextmanager
def serving(*imports: str, log: Path = Path(os.devnull)) -> Iterator[dict[str, str]]:
    """Yield the environment variables by which stages find a server that has imported `imports`, or else `modules()`.

    They can be used at once: who comes before the imports are done waits for them. `log` gets what the server says.
    """
    with tempfile.TemporaryDirectory(prefix="stages-", ignore_cleanup_errors=True) as folder:  # mode 0700
        path = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
            except OSError as error:  # a path of more than a hundred bytes
                print(f"every stage runs by itself: no socket at {path}: {error}", file=sys.stderr)
                yield {}
                return
            listener.listen(64)
            number = listener.fileno()
            command = [sys.executable, "-m", "stages.core.running.server", folder, str(number), *imports]
            with log.open("w") as said:
                # The server reads its standard input to the end, which comes when this process is gone.
                server = subprocess.Popen(
                    command, cwd=ROOT, env=os.environ, pass_fds=[number], start_new_session=True,
                    stdin=subprocess.PIPE, stdout=said, stderr=said,
                )  # fmt: skip
        try:
            yield {wire.SERVER: path}
        finally:
            server.stdin.close()
            server.terminate()  # while it is still at its imports; later it takes no notice
            server.wait()


def digest() -> str:
    """One sha256 over the code of the stages and the versions they need: 0.1 MB of text, read in milliseconds."""
    found = hashlib.sha256()
    for path in [ROOT / "requirements.txt", *sorted((ROOT / "stages").rglob("*.py"))]:
        code = path.read_bytes()
        found.update(f"{path.relative_to(ROOT)} {len(code)}\n".encode() + code)
    return found.hexdigest()


class Server:
    """Answers clients one after the other; what it holds of each is the connection, by its child's number."""

    def __init__(self, listener: socket.socket, imports: list[str]):
        self.listener, self.children = listener, {}
        self.environment, self.code = dict(os.environ), digest()
        # CUDA's own way to count devices would make a context, which no child could use.
        os.environ[CHECK] = "1"
        for name in imports:
            importlib.import_module(name)
        assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()
        # What imports have set, as they would have in the stage's own process.
        own = {key: value for key, value in os.environ.items() if key != CHECK}
        self.added = {key: value for key, value in own.items() if self.environment.get(key) != value}

    def serve(self) -> dict | None:
        """A request, in the child that is to meet it; None in the server, when its time is over."""
        awake, bell = socket.socketpair()
        bell.setblocking(False)
        signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # collections in a child would copy every page
        waiting = [0, self.listener, awake]
        while waiting or self.children:
            ready, _, _ = select.select([awake, *(each for each in waiting if each is not awake)], [], [])
            if awake in ready:
                awake.recv(4096)
                self.reap()
            if 0 in ready:  # the end of who started this: nobody new, but who is at work may finish
                self.listener.close()
                waiting = []
            elif self.listener in ready:
                connection, _ = self.listener.accept()
                if found := self.answer(connection):
                    signal.set_wakeup_fd(-1)
                    for number in (signal.SIGCHLD, signal.SIGTERM):
                        signal.signal(number, signal.SIG_DFL)
                    for each in (awake, bell, self.listener, *self.children.values()):
                        each.close()
                    self.become(*found, connection)
                    return found[0]
        return None

    def reap(self) -> None:
        """Tell the clients of children that have ended how they did."""
        while self.children:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            with self.children.pop(number) as connection:
                try:
                    wire.send(connection, os.waitstatus_to_exitcode(status))
                except OSError:
                    pass  # the client is gone

    def answer(self, connection: socket.socket) -> tuple[dict, list[int]] | None:
        """Fork for a client or refuse it; the request and its standard streams in the child, None in the server."""
        streams, number = [], None
        try:
            connection.settimeout(5)
            asked, streams = wire.receive(connection, 3)
            refused = self.mistake(asked)
            number = None if refused else os.fork()
            if number == 0:
                return asked, streams
            wire.send(connection, refused)
        except Exception as error:  # a client that is gone, or no memory for a fork: it runs its stage by itself
            print(f"the server of stages: {error!r}", file=sys.stderr)
        for stream in streams:
            os.close(stream)
        if number:
            self.children[number] = connection
            print(f"process {number} runs {asked['name']} {' '.join(asked['options'])}", flush=True)
        else:
            connection.close()
        return None

    def mistake(self, asked: dict) -> str:
        """Why the process that asks would not compute the same here, or nothing."""
        if asked["python"] != [sys.prefix, sys.version] or asked["code"] != str(ROOT / "stages"):
            return f"the server of `make repro` runs {ROOT} by {sys.prefix}"
        if digest() != self.code:
            return "its code or requirements.txt have changed since `make repro` started"
        theirs = asked["environment"]
        names = {name for name in {*theirs, *self.environment} - FREE if theirs.get(name) != self.environment.get(name)}
        return f"`make repro` was started with another {', '.join(sorted(names))}" if names else ""

    def become(self, asked: dict, streams: list[int], connection: socket.socket) -> None:
        """In the child: what a new process would have, from the client."""
        os.setsid()
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update({**self.added, **asked["environment"]})
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
        sys.argv[1:] = asked["options"]
        for name in ("random", "numpy.random"):
            if name in sys.modules:
                sys.modules[name].seed()
        connection.settimeout(None)
        threading.Thread(target=_follow, args=(connection, os.getppid()), daemon=True).start()


def _follow(client: socket.socket, server: int) -> None:
    """Pass the client's signals on to this process, and end it when the client or the server is gone."""
    while os.getppid() == server:
        if select.select([client], [], [], 0.5)[0]:
            try:
                numbers = client.recv(16)
            except OSError:
                break
            if not numbers:
                break
            for number in numbers:
                signal.pthread_kill(threading.main_thread().ident, number)
    os._exit(1)


def main(folder: str, number: str, *imports: str) -> None:
    """Serve until the end of standard input; in a child, run its stage."""
    this = os.getpid()
    try:
        asked = Server(socket.socket(fileno=int(number)), list(imports) or modules()).serve()
    finally:
        if os.getpid() == this:
            shutil.rmtree(folder, ignore_errors=True)
    if asked:
        runpy.run_module(f"stages.{asked['name']}", run_name="__main__", alter_sys=True)
        # All went well. Taking apart all that was imported would cost more than many a stage; multiprocessing ends its
        # forked processes in the same way.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
