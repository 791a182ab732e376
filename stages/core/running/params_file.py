"""params.yaml parsed once by a DVC that asks for it at every stage, and its values looked up by their keys.

DVC parses the whole file for the parameters of each stage, and compares each of its keys with each that is asked for:
for 137 stages that is seconds of a core.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

GLOB = set("*?[]!/")  # in a key, patterns of DVC's


def install() -> None:
    """Let DVC in this process parse a params file again only where it has changed."""
    from dvc.dependency import param

    load = once(param.load_path, lambda path, fs: (path, fs.protocol), copied=lambda values: values)
    theirs = param.read_param_file

    def load_path(path: str, fs: Any, **options: Any) -> Any:
        return copy.deepcopy(load(path, fs, **options))

    def read_param_file(fs: Any, path: str, key_paths: list[str] | None = None, flatten: bool = False, **options: Any):
        found = looked_up(load(path, fs, **options), key_paths) if flatten and key_paths else None
        return theirs(fs, path, key_paths, flatten=flatten, **options) if found is None else found

    param.load_path, param.read_param_file = load_path, read_param_file


def looked_up(values: Any, keys: list[str]) -> dict[str, Any] | None:
    """Each of the dotted keys with its value, which belongs to who asked.

    None where one is a pattern or not in `values`: DVC may see more in it.
    """
    found = {}
    for key in keys:
        at = values
        for step in key.split("."):
            if GLOB & set(step) or not isinstance(at, dict) or step not in at:
                return None
            at = at[step]
        found[key] = copy.deepcopy(at)
    return found


def once(load: Callable, known: Callable[..., tuple], copied: Callable[[Any], Any] = copy.deepcopy) -> Callable:
    """`load`, which reads a file again only where that has changed; what it returns belongs to who asked.

    known: its positional arguments -> the path of the file, and what else tells one answer from another. copied: makes
    of what was read what is returned.
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
        return copied(loaded[which][1])

    return cached
