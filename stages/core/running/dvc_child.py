"""DVC as a child of `make repro`: it ends when its parent ends, however that was.

python -m stages.core.running.dvc_child PARENT ARGUMENTS: what `dvc ARGUMENTS` does, while process PARENT lives.
The script `dvc` will not do: it names the folder in which it was installed, and fails once that is renamed.
"""

import os
import sys
import threading
import time

from stages.core.process import guard
from stages.core.running import choice, code_folders, lock_file, params_file


def main(parent: str, *arguments: str) -> int:
    """The exit status of one call of DVC."""
    os.environ[guard.DVC] = str(os.getpid())  # its stage ends with this very process
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    lock_file.install()
    params_file.install()
    code_folders.install()
    choice.apply()
    from dvc.cli import main as dvc

    return dvc(list(arguments))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
