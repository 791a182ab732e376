"""No test needs a network, and every run draws the same examples; runs of the whole DAG, made once for all tests."""

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

# Whose tests take the fixture `clone`; a file missing here would make a clone of its own.
CLONED = {"test_clones", "test_dag", "test_leftovers", "test_pipeline", "test_remotes"}


def pytest_xdist_make_scheduler(config, log):
    """Files go side by side; those that share the clone stay together, for only one process makes it."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "clone" if Path(file).stem in CLONED else file

    return Files(config, log)


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """A shrunk clone after one run of everything, in a path with a space. Whoever changes it puts it back."""
    from shrunk import new_clone, run, stages_run

    folder = new_clone(tmp_path_factory.mktemp("clone") / "a study")
    assert "report" in stages_run(run(folder, sys.executable, "-m", "stages.commands.repro", "--jobs", "2"))
    return folder


@pytest.fixture(scope="session")
def copy_of(tmp_path_factory):
    """Makes copies of a clone with all that it has made, cache included, to do to them what one likes."""
    return lambda folder: shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "study", symlinks=True)
