"""The process that `make repro` keeps for its stages: it imports their libraries once and forks for each stage.

A stage's own imports take seconds of a core, a fork takes milliseconds. A child computes the same as a new process: it
has the client's environment, folder, arguments and standard streams, fresh threads and random states, and it runs the
same module. The server refuses a client with other code, another Python or another environment, because libraries read
the environment when they are imported.

The socket lies in a folder that only its owner can enter. The server ends when the process that started it ends
or is killed. A child ends with its client, with the DVC that `make repro` names (see `process.guard`), and with the
server.
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
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.core.process import guard, progress, scratch
from stages.core.process.errors import UserError
from stages.core.running import wire

ROOT = Path(__file__).resolve().parents[3]
# Environment variables that may differ between the server and a stage: no library reads them at import.
FREE = {
    *("DVC_STAGE", "DVC_ROOT", guard.DVC, progress.REPORT, scratch.SCRATCH, wire.SERVER),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PWD", "OLDPWD", "SHLVL", "_"),
}
# Model types whose classes are imported: of the bundled models and of Llamas. What is common to all types comes with
# them; a stage imports the little that another type adds.
TYPES = ("gpt2", "llama", "vit")
OTHERS = ("running", "reporting")  # rooms that are not imported here: of commands, and of a single stage
CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# Libraries that stages import inside functions, so that importing the rooms does not import them.
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
    """The modules that a stage may need: those of the rooms, libraries, and the classes of TYPES."""
    rooms = sorted(path for path in (ROOT / "stages" / "core").glob("*/*.py") if path.parent.name not in OTHERS)
    own = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in rooms]
    # This one first, as in a stage: it sets variables that libraries read when they are imported.
    return [
        "stages.core.process.command",
        *own,
        *LIBRARIES,
        *(f"transformers.models.{name}.modeling_{name}" for name in TYPES),
    ]


@contextmanager
def serving(*imports: str, log: Path = Path(os.devnull)) -> Iterator[dict[str, str]]:
    """Yield the environment variables by which stages find the server. imports: modules; by default `modules()`.

    They can be used at once: a client that comes early waits until the imports are done. log: the server's output.
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


def warm() -> None:
    """Do once what every stage would do first: check params.yaml, compile transformers' rules for names of weights.

    Libraries keep what they found in memory. A child whose params.yaml has another text reads that.
    """
    params, rules = sys.modules.get("stages.core.settings.params"), sys.modules.get("transformers.conversion_mapping")
    if params:
        with suppress(UserError):  # a stage says what is wrong
            params.load()
    if rules:
        for name in TYPES:
            rules.get_checkpoint_conversion_mapping(name)


class Server:
    """Answers clients one after the other. children: process id of a child -> the connection to its client."""

    def __init__(self, listener: socket.socket, imports: list[str]):
        self.listener, self.children = listener, {}
        self.environment, self.code = dict(os.environ), digest()
        # CUDA's own way to count devices would make a context, which no child could use.
        os.environ[CHECK] = "1"
        for name in imports:
            importlib.import_module(name)
        warm()
        assert "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized()
        # Variables that the imports have set, as they would in a stage's own process.
        own = {key: value for key, value in os.environ.items() if key != CHECK}
        self.added = {key: value for key, value in own.items() if self.environment.get(key) != value}

    def serve(self) -> dict | None:
        """Serve until the end. Returns None in the server, and in each forked child the request that it has to run."""
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
            if 0 in ready:  # the process that started this has ended: no new clients, but running children may finish
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
        """Send the exit status of each child that has ended to its client."""
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
        """Fork for a client, or refuse it. Returns the request and its standard streams in the child, else None."""
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
        """Why a child of this server would not compute the same as the client; empty where it would."""
        if asked["python"] != [sys.prefix, sys.version] or asked["code"] != str(ROOT / "stages"):
            return f"the server of `make repro` runs {ROOT} by {sys.prefix}"
        if digest() != self.code:
            return "its code or requirements.txt have changed since `make repro` started"
        theirs = asked["environment"]
        names = {name for name in {*theirs, *self.environment} - FREE if theirs.get(name) != self.environment.get(name)}
        return f"`make repro` was started with another {', '.join(sorted(names))}" if names else ""

    def become(self, asked: dict, streams: list[int], connection: socket.socket) -> None:
        """Make the child like a new process of the client: its session, streams, folder, environment, arguments."""
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
        # Success. Unloading all modules would take longer than many stages; multiprocessing ends its forked processes
        # in the same way.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
