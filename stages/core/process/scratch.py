"""A folder that `make repro` keeps while it runs, for what several stages would each compute anew."""

import os
from pathlib import Path

SCRATCH = "SHARED_FFN_SCRATCH"  # the environment variable that names the folder


def folder() -> Path | None:
    """The folder, which may vanish at any time; None for a stage that runs by itself."""
    return Path(os.environ[SCRATCH]) if SCRATCH in os.environ else None
