"""The hub that models and data sets may come from, and what happens where it cannot be reached."""

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from stages.core.process.errors import UserError


def refuse(where: str, model: str, gguf_file: str | None = None) -> None:
    """Raise UserError with the `mistake` there is, if any."""
    if broken := mistake(where, model, gguf_file):
        raise UserError(f"params.yaml: {broken}")


def mistake(where: str, model: str, gguf_file: str | None = None) -> str | None:
    """What is wrong with the name of a model, a folder of this machine or an id of the hub, or with that of its file.

    where: the section of params.yaml that has `model` and `gguf_file`. None where nothing is.
    """
    if "://" in model:
        return f"{where}.model = {model}: an address is no hub id; owner/name is needed"
    if Path(model).is_file():
        return f"{where}.model = {model}: it is a file; its folder is needed, and for GGUF the name as gguf_file"
    if is_missing_folder(model):
        return f"{where}.model = {model}: there is no such folder"
    if gguf_file and Path(model).is_dir() and not Path(model, gguf_file).is_file():
        return f"{where}.gguf_file = {gguf_file}: no such file in {model}; its name alone is needed"
    return None


def is_missing_folder(name: str) -> bool:
    """Whether a name is the path of a folder that is not here. If not, it is one that is here, or an id of the hub.

    A path begins with `/`, `.`, `~` or a folder of the working directory, and an id has at most one `/`.
    """
    path = Path(name)
    begins = path.is_absolute() or name[:1] in ("", ".", "~") or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    return (begins or len(path.parts) > 2) and not path.is_dir()


def settle(timeout: float = 5.0) -> None:
    """Where no connection to the hub can be made, tell its libraries to use their cache alone.

    They would try again for half a minute, and then fail all the same.
    """
    if "HF_HUB_OFFLINE" in os.environ or "https" in getproxies():
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((hub.hostname, hub.port or {"http": 80}.get(hub.scheme, 443)), timeout).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in ("huggingface_hub.constants", "datasets.config"):  # they read it when they are imported
            if known := sys.modules.get(name):
                known.HF_HUB_OFFLINE = True
