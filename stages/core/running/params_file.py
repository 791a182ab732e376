"""params.yaml parsed once by a DVC that asks for it at every stage.

DVC parses the whole file for the parameters of each stage: for 137 stages that is seconds of a core.
"""

import copy
import os
from collections.abc import Callable
from typing import Any


def install() -> None:
    """Let DVC in this process parse a params file again only where it has changed."""
    from dvc.dependency import param

    param.load_path = once(param.load_path, lambda path, fs: (path, fs.protocol))


def once(load: Callable, known: Callable[..., tuple]) -> Callable:
    """`load`, which reads a file again only where that has changed; what it returns belongs to who asked.

    known: its positional arguments -> the path of the file, and what else tells one answer from another.
    """
    loaded: dict[tuple, tuple[tuple, Any]] = {}

    def cached(*arguments: Any, **options: Any) -> Any:
        which = known(*arguments)
        try:
            status = os.stat(which[0])
        except OSError:  # of another file system than this one, or `load` says that it is not there
            return load(*arguments, **options)
        state = (status.st_ino, status.st_size, status.st_mtime_ns, tuple(options.items()))
        if which not in loaded or loaded[which][0] != state:
            loaded[which] = (state, load(*arguments, **options))
        return copy.deepcopy(loaded[which][1])

    return cached
