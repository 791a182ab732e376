"""A stage that the server forks does what one does that runs by itself, and ends with whom it should."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from closure import ROOT
from ruamel.yaml import YAML
from shrunk import narrow

from stages.core.process import guard
from stages.core.running import server, wire

# A stage of a test's own: it says what it sees, or ends in a way of its own.
TOY = """
import atexit, json, os, random, signal, sys, threading, time
import numpy
from stages.core.process import command
from stages.core.process.errors import UserError

def main(act: str) -> None:
    if act == "tell":
        drawn = [random.random(), numpy.random.random()]
        seen = {"environment": dict(os.environ), "folder": os.getcwd(), "arguments": sys.argv[1:], "drawn": drawn}
        seen |= {"parent": os.getppid(), "session": os.getsid(0), "open": sorted(map(int, os.listdir("/proc/self/fd")))}
        print(json.dumps(seen))
        print("to standard error", file=sys.stderr)
    elif act == "late":
        threading.Thread(target=lambda: (time.sleep(0.3), print("a thread's words"))).start()
        atexit.register(print, "last words")
        print("first words")
    elif act == "user error":
        raise UserError("a key, its value")
    elif act == "defect":
        raise RuntimeError("a defect")
    elif act == "status 7":
        sys.exit(7)
    elif act == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        try:
            print(os.getpid(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise

if __name__ == "__main__":
    command.entry(main)
"""


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A copy of this project's code with the stage `toy`, of which a server is started."""
    shutil.copytree(ROOT / "stages", tmp_path / "tree/stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", tmp_path / "tree")
    (tmp_path / "tree/stages/toy.py").write_text(TOY)
    monkeypatch.setattr(server, "ROOT", tmp_path / "tree")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    return tmp_path / "tree"


@pytest.fixture
def light(tree):
    """The variables that lead to a server which has imported next to nothing."""
    del os.environ["PYTEST_CURRENT_TEST"]  # pytest sets it anew for the test itself
    with server.serving("numpy") as found:
        yield found


def surroundings(variables):
    """The environment of this process, without what pytest changes in it, and some variables more."""
    return {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"} | variables


def start(tree, act, variables={}, **options):
    """A client in the folder `tree`, as DVC would start it."""
    command = [sys.executable, "-m", "stages.run", "toy", "--act", act]
    options = {"cwd": tree, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, env=surroundings(variables), **options)


def told(tree, variables, act="tell"):
    """What a stage says of itself."""
    client = start(tree, act, variables)
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    return json.loads(out) | {"client": client.pid, "error": err}


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_child_has_what_its_client_has(tree, light):
    """But for who its parent is: environment, folder, arguments, streams, and no more open files."""
    alone, child = told(tree, {}), told(tree, light)
    assert alone["parent"] == os.getpid() and child["parent"] not in (os.getpid(), child["client"])
    assert child["environment"] == alone["environment"] | light
    assert child["error"] == alone["error"] == "to standard error\n"
    for key in ("folder", "arguments"):
        assert child[key] == alone[key], key
    # Its connection and the folder that it lists are the only files that the streams are not.
    assert len(child["open"]) == 5 and len(alone["open"]) == 4


def test_two_children_share_nothing_of_chance_or_surroundings(tree, light):
    first, other = (told(tree, {**light, "DVC_ROOT": str(tree), "CUDA_VISIBLE_DEVICES": n}) for n in "01")
    assert [each["environment"]["CUDA_VISIBLE_DEVICES"] for each in (first, other)] == ["0", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in told(tree, light)["environment"]
    assert not set(first["drawn"]) & set(other["drawn"])
    assert first["session"] != other["session"]


@pytest.mark.parametrize("act", ["user error", "defect", "status 7", "killed", "tell"])
def test_status_and_last_words_pass_through(act, tree, light):
    ends = []
    for variables in ({}, light):
        client = start(tree, act, variables)
        out, err = client.communicate(timeout=60)
        ends.append((client.returncode, err.splitlines()[-1:]))
    assert ends[0] == ends[1] and (act == "tell") == (ends[0][0] == 0)


def test_what_is_said_at_the_end_is_not_lost(tree, light):
    for variables in ({}, light):
        assert start(tree, "late", variables).communicate()[0] == "first words\na thread's words\nlast words\n"


def test_options_are_the_stage_s_own_to_refuse(tree, light):
    client = subprocess.run(
        [sys.executable, "-m", "stages.run", "toy", "--other", "1"],
        cwd=tree, env=surroundings(light), text=True, capture_output=True,
    )  # fmt: skip
    assert client.returncode == 2 and "toy.py: error: the following arguments are required: --act" in client.stderr


@pytest.mark.parametrize("name", ["run", "__init__", "core", "../toy", ""])
def test_what_is_no_stage_is_not_run(name):
    client = subprocess.run([sys.executable, "-m", "stages.run", name], cwd=ROOT, text=True, capture_output=True)
    assert client.returncode == 1 and "NAME is one of align, articles, base" in client.stderr


def alone(tree, variables, why):
    """Whether a stage ran in its client's own process, and said why."""
    found = told(tree, variables)
    assert found["parent"] == os.getpid() and re.search(why, found["error"])


def test_changed_code_is_refused(tree, light):
    assert told(tree, light)["parent"] != os.getpid()
    for file in ("requirements.txt", "stages/core/process/hub.py", "stages/toy.py"):
        before = (tree / file).read_text()
        (tree / file).write_text(before + "\n# another line\n")
        alone(tree, light, "toy runs by itself: its code or requirements.txt have changed")
        (tree / file).write_text(before)
    assert told(tree, light)["parent"] != os.getpid()


def test_code_of_another_folder_is_refused(tree, light, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    alone(tmp_path / "other", light, "toy runs by itself: the server of `make repro` runs")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "OMP_NUM_THREADS", "ANYTHING_ELSE"])
def test_another_environment_is_refused(name, tree, light):
    alone(tree, {**light, name: "7"}, f"was started with another {name}")


def test_a_socket_that_nobody_serves_is_no_server(tree, tmp_path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    alone(tree, {wire.SERVER: str(tmp_path / "stale")}, "^to standard error\n$")
    alone(tree, {wire.SERVER: str(tmp_path / "missing")}, "^to standard error\n$")


def test_a_server_whose_imports_fail_is_no_server(tree):
    with server.serving("no_such_module") as variables:
        alone(tree, variables, "^to standard error\n$")


def test_only_its_owner_can_enter_the_socket_s_folder_and_nothing_is_left_of_it(tree):
    with server.serving("numpy") as variables:
        folder = Path(variables[wire.SERVER]).parent
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()
        assert len(os.fsencode(variables[wire.SERVER])) < 100
    assert not folder.exists()


def test_where_no_socket_can_be_made_stages_run_by_themselves(tree, tmp_path, monkeypatch, capsys):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(server.tempfile, "tempdir", str(long))
    with server.serving("numpy") as variables:
        assert variables == {}
    assert "every stage runs by itself" in capsys.readouterr().err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_who_started_it(end, tree):
    """Whoever is at work may finish; nobody new comes in, and the socket is gone."""
    code = (
        "import sys; from stages.core.running.server import serving\n"
        "with serving('numpy') as found: print(*found.values(), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tree, env=surroundings({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    variables = {wire.SERVER: owner.stdout.readline().strip()}
    serving = told(tree, variables)["parent"]
    working = start(tree, "work", variables)
    child = int(working.stdout.readline())
    owner.send_signal(end)
    owner.wait()
    until = time.monotonic() + 20
    while told(tree, variables)["parent"] != os.getpid() and time.monotonic() < until:
        time.sleep(0.05)
    alone(tree, variables, "^to standard error\n$")
    assert working.poll() is None
    working.terminate()
    assert working.wait(20) == -signal.SIGTERM
    assert gone(child) and gone(serving) and not Path(variables[wire.SERVER]).parent.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_ends_with_its_client(end, tree, light):
    ends = []
    for variables in ({}, light):
        client = start(tree, "work", variables)
        child = int(client.stdout.readline())
        assert (child == client.pid) == (not variables)
        client.send_signal(end)
        out, _ = client.communicate(timeout=20)
        assert gone(child) and out == ("interrupted\n" if end == signal.SIGINT else "")
        ends.append(client.returncode)
    assert ends[0] == ends[1] != 0


def test_a_child_s_end_by_a_signal_is_its_client_s(tree, light):
    client = start(tree, "work", light)
    os.kill(int(client.stdout.readline()), signal.SIGUSR1)
    assert client.wait(20) == -signal.SIGUSR1


def test_children_end_with_a_server_that_is_killed(tree, light):
    client = start(tree, "work", light)
    child = int(client.stdout.readline())
    os.kill(int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
    assert client.wait(20) == 1 and gone(child)
    assert "the server that ran toy was killed" in client.stderr.read()


def test_a_child_holds_the_stage_s_lock_and_ends_with_its_client_s_dvc(tree, light, tmp_path):
    (tmp_path / "dvc").write_text(
        f"import os, subprocess, sys; os.environ['{guard.DVC}'] = str(os.getpid())\n"
        "subprocess.run(sys.argv[1], shell=True)"
    )
    stage = {"DVC_STAGE": "toy", "DVC_ROOT": str(tmp_path)}
    dvc = subprocess.Popen(
        [sys.executable, str(tmp_path / "dvc"), f"true; {sys.executable} -m stages.run toy --act work; true"],
        cwd=tree, env=surroundings({**light, **stage}), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    child = int(dvc.stdout.readline())
    assert (tmp_path / ".dvc/tmp/running/toy.lock").read_text() == str(child)
    dvc.kill()
    # Who comes next waits for the lock, and gets it.
    assert told(tree, {**light, **stage})["environment"]["DVC_STAGE"] == "toy"
    assert gone(child)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = shutil.copytree(ROOT / "data/model", tmp_path_factory.mktemp("model") / "model")
    narrow(folder)
    return folder


@pytest.fixture(scope="module")
def warm(model):  # made before: the libraries that it takes change this process's environment
    """The variables that lead to a server which has imported all that stages import."""
    del os.environ["PYTEST_CURRENT_TEST"]
    with server.serving() as found:
        yield found


def made(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_real_stage_writes_the_same_bytes(model, warm, tmp_path):
    """Activations, moments and text of a narrow model, whatever the order in which Python's sets come."""
    yaml = YAML(typ="safe")
    values = yaml.load((ROOT / "params.yaml").read_text())
    values["profiles"]["small"]["extract"].update(max_tokens=512, moment_tokens=768)
    from stages.core.text import corpus

    corpus.write_tokens(tmp_path / "tokens.parquet", list(range(400)) * 4)
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    found = {}
    for name, variables in {"warm": warm, "alone": {"PYTHONHASHSEED": "3"}}.items():
        client = subprocess.run(
            [sys.executable, "-m", "stages.run", "extract", "--profile", "small", "--model", model]
            + ["--tokens", "tokens.parquet", "--out", f"{name}/activations", "--moments", f"{name}/moments"]
            + ["--text", f"{name}/calibration.json"],
            cwd=tmp_path, env=surroundings(variables), text=True, capture_output=True,
        )  # fmt: skip
        assert (client.returncode, client.stderr) == (0, "")  # neither "by itself" nor a library's own bars
        found[name] = made(tmp_path / name)
    assert len(found["alone"]) > 8 and found["warm"] == found["alone"]


def test_the_full_server_has_few_threads(warm):
    """Its own and the one that pyarrow's allocator keeps; more could hold a lock that a fork would never see freed."""
    client = subprocess.run(
        [sys.executable, "-m", "stages.run", "search", "--help"],
        cwd=ROOT, env=surroundings(warm), text=True, capture_output=True,
    )  # fmt: skip
    assert (client.returncode, client.stderr) == (0, "")
    (found,) = [each for each in psutil.Process().children() if "stages.core.running.server" in each.cmdline()]
    assert found.num_threads() <= 2


def test_every_module_that_the_server_imports_exists():
    """One that does not exist would end the server at its start, and every stage would start cold."""
    assert not [name for name in server.modules() if importlib.util.find_spec(name) is None]


def test_what_every_stage_does_first_is_done_before_the_fork(monkeypatch):
    from stages.core.settings import params

    monkeypatch.chdir(ROOT)
    params._parsed.cache_clear()
    server.warm()
    before = params._parsed.cache_info()
    params.load()
    assert params._parsed.cache_info().hits == before.hits + 1


def test_a_params_file_with_a_mistake_does_not_end_the_server(monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_text("profile: [")
    monkeypatch.chdir(tmp_path)
    server.warm()
