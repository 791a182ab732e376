"""dvc.lock read once and written by the stage: what DVC's own means do to the whole file, byte for byte, but sooner.

After each stage DVC parses all of dvc.lock, and writes all of it anew: for a study of 129 stages that is as much work
as many a stage, and no other chain may write meanwhile. Here one stage's lines are put in the place of its old ones.
Only DVC as a child of `make repro` does so; plain `dvc repro` is as DVC made it. A file of another form than DVC writes
for stages alone is left to DVC.
"""

import logging
import os
from pathlib import Path
from typing import Any

from stages.core.running import params_file

HEAD = "schema: '2.0'\nstages:\n"
logger = logging.getLogger("dvc.dvcfile")


def install() -> None:
    """Let DVC in this process read and write dvc.lock so."""
    from dvc.dvcfile import Lockfile

    theirs = Lockfile.dump_stages

    def dump_stages(self: Any, stages: list[Any], **options: Any) -> None:
        if not stages or not write(self, stages, **options):
            theirs(self, stages, **options)

    Lockfile.dump_stages = dump_stages
    Lockfile._load = params_file.once(Lockfile._load, lambda lock: (lock.path,))


def write(lock: Any, stages: list[Any], **options: Any) -> bool:
    """Put what is known of `stages` into dvc.lock. False where its form is another, and nothing was written."""
    from dvc.stage import serialize

    path = Path(lock.path)
    old = text = path.read_text(encoding="utf-8") if path.exists() else ""
    for stage in stages:
        text = replaced(text, serialize.to_lockfile(stage, **options))
        if text is None:
            return False
    if text != old:
        logger.info("Updating lock file '%s'", lock.relpath)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
        lock.repo.scm_context.track_file(lock.relpath)
    return True


def replaced(text: str, stage: dict[str, Any]) -> str | None:
    """The text of dvc.lock with {name: data} of one stage, new or in the place of its old lines.

    None unless the text is what DVC writes for stages alone.
    """
    from dvc.utils.serialize import dumps_yaml

    lines = text.splitlines(keepends=True)
    if not text.startswith(HEAD) or not text.endswith("\n") or any(not line.startswith("  ") for line in lines[2:]):
        return None
    new = dumps_yaml({"schema": "2.0", "stages": stage}).removeprefix(HEAD).splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if line[:2] == "  " and line[2] not in " -"]
    old = [number for number in heads if lines[number] == new[0]]
    begin = old[0] if old else len(lines)
    end = next((number for number in heads if number > begin), len(lines))
    return "".join([*lines[:begin], *new, *lines[end:]])
