"""No test needs a network, and every run draws the same examples; runs of the whole DAG, made once for all tests."""

import fcntl
import gc
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("SHARED_FFN_PROFILE", None)  # of `make test PROFILE=...`: the tests choose profiles themselves
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores are at work

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("steady")


# Runs of the DAG take minutes: they begin at once, and what needs the clone that test_pipeline makes comes when it is
# there, with files of few tests that take long. All other files: those with the most tests first.
BEGIN, LATER = ("test_pipeline", "test_clones", "test_stages", "test_vision_stages"), (
    "test_remotes", "test_dag", "test_leftovers", "test_server", "test_calls", "test_hub_box", "test_report",
    "test_fuzz",
)  # fmt: skip
BEFORE = 3  # files between the two


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, since tests of processes wait and sleep (the Makefile's maximum is above it)."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_xdist_make_scheduler(config, log):
    """Files go side by side, in the order of `pytest_collection_modifyitems`."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """Of several processes, none is left alone with a long file at the end; one process keeps the usual order."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path.stem for item in items)
    rest = sorted(tests.keys() - {*BEGIN, *LATER}, key=lambda name: (-tests[name], name))
    order = [*BEGIN, *rest[:BEFORE], *LATER, *rest[BEFORE:]]
    items.sort(key=lambda item: order.index(item.path.stem))


def pytest_collection_finish():
    """What is imported by now stays: Python's collector would look at all of it again, for a quarter of a second."""
    gc.collect()
    gc.freeze()


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
