"""No test needs a network, and every run draws the same examples; runs of the whole DAG, made once for all tests."""

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores are at work

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("steady")


def pytest_xdist_make_scheduler(config, log):
    """Files go side by side."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def clone(tmp_path_factory, worker_id) -> Path:
    """A shrunk clone after one run of everything, in a path with a space. Whoever changes it puts it back.

    Of several test processes one makes it, and each has a copy.
    """
    from shrunk import new_clone, run, stages_run

    base = tmp_path_factory.getbasetemp()
    made = (base if worker_id == "master" else base.parent) / "clone" / "a study"
    made.parent.mkdir(exist_ok=True)
    with (made.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made.parent / "done").exists():
            new_clone(made)
            assert "report" in stages_run(run(made, sys.executable, "-m", "stages.commands.repro", "--jobs", "2"))
            (made.parent / "done").touch()
    return shutil.copytree(made, tmp_path_factory.mktemp("clone") / "a study", symlinks=True)


@pytest.fixture(scope="session")
def copy_of(tmp_path_factory):
    """Makes copies of a clone with all that it has made, cache included, to do to them what one likes."""
    return lambda folder: shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "study", symlinks=True)
