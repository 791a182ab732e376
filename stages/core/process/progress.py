"""Progress of long work: a bar on standard error or, where `make repro` draws the screen, a file that it reads."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

REPORT = "SHARED_FFN_PROGRESS"  # the environment variable that names the file
PAUSE = 0.5  # seconds between two reports


def progress(items: Iterable, what: str, **options: Any) -> Iterable:
    """`items` behind a progress bar that says what is being done; `options` are tqdm's.

    The bar is drawn where standard error is a terminal. Where the environment names a file, the same goes there.
    """
    if REPORT in os.environ:
        return Reported(items, what, Path(os.environ[REPORT]), options.get("total"))
    from tqdm import tqdm

    return tqdm(items, desc=what, file=sys.stderr, dynamic_ncols=True, mininterval=PAUSE, disable=None, **options)


class Reported:
    """Items that tell a file how far whoever works through them has come, at most twice a second.

    The file holds a JSON object: stage, what, done, total (null where it is not known), note.
    """

    def __init__(self, items: Iterable, what: str, path: Path, total: int | None = None):
        self.items, self.path, self.last = items, path, -PAUSE
        self.state = {"stage": os.environ.get("DVC_STAGE"), "what": what, "done": 0, "note": ""}
        self.state["total"] = len(items) if total is None and hasattr(items, "__len__") else total

    def __iter__(self) -> Iterator:
        self._write()
        for item in self.items:
            yield item
            self.state["done"] += 1
            if time.monotonic() - self.last >= PAUSE:
                self._write()
        self._write()

    def set_postfix_str(self, note: str, refresh: bool = False) -> None:
        """Say something beside the count, such as the loss (tqdm has the same method)."""
        self.state["note"] = note

    def _write(self) -> None:
        self.last = time.monotonic()
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with suppress(OSError):  # a screen that is gone, or a full disk, is no reason to end a stage
            draft.write_text(json.dumps(self.state), encoding="utf-8")
            os.replace(draft, self.path)


def report_of(path: Path, stage: str) -> dict[str, Any] | None:
    """What a stage has last said of its progress; None where it has said nothing yet."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and state.get("stage") == stage else None
