"""What dvc.lock says of a study's files: which profile and params made them, and whether they are of one run.

DVC notes for every stage the hash of each file that it read, and of each that it wrote. Where a file that a stage read
has another hash by now, it was made anew, and what the stage wrote belongs to an earlier run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError
from stages.core.running import verification

LOCK, PARAMS = Path("dvc.lock"), "params.yaml"
FIRST = "base"


@dataclass(frozen=True)
class Origins:
    """stages: name -> what dvc.lock says of a stage."""

    stages: Mapping[str, Mapping[str, Any]]

    @classmethod
    def here(cls) -> "Origins | None":
        """What the current folder's dvc.lock says; None where there is no such file. Raises UserError if unreadable."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        if not LOCK.is_file():
            return None
        try:
            return cls(dict(YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))["stages"]))
        except (OSError, ValueError, TypeError, KeyError, YAMLError) as error:
            raise UserError(f"cannot read {LOCK}: {' '.join(str(error).split())}; `git restore {LOCK}`") from error

    @cached_property
    def _outs(self) -> dict[str, tuple[str, str]]:
        """The path of every file or folder that a stage wrote -> the stage, and the hash."""
        return {out["path"]: (name, out["md5"]) for name, entry in self.stages.items() for out in entry.get("outs", [])}

    @property
    def profile(self) -> str:
        """The profile of the model under study; empty where no stage has opened one."""
        words = self.stages.get(FIRST, {}).get("cmd", "").split()
        return words[words.index("--profile") + 1] if "--profile" in words else ""

    def holds(self, path: Path) -> bool:
        """Whether the file or folder at a path is the one that a stage wrote there."""
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file())
            found = _listed({file.relative_to(path).as_posix(): verification.digest(file) for file in files})
        else:
            found = verification.digest(path)
        return str(path) in self._outs and self._outs[str(path)][1] == found

    def newer(self, stage: str) -> list[str]:
        """The paths that a stage, or one before it, read in another state than they have been written in since."""
        found = {}
        for name in self._chain(stage):
            for path, digest in self._read(name).items():
                if digest != self._digest(path, self._written(name, path)):
                    found[path] = name
        return list(found)

    def said(self, stage: str, prefix: str) -> dict[str, Any]:
        """The keys of params.yaml that begin with a prefix -> the value they had for a stage and those before it."""
        found = [self._params(name) for name in self._chain(stage)]
        return {key: value for values in found for key, value in values.items() if key.startswith(prefix)}

    def _chain(self, stage: str) -> list[str]:
        """A stage and all that must have run before it."""
        found, waiting = [], [stage]
        while waiting:
            if (name := waiting.pop()) not in found:
                found.append(name)
                waiting += [self._outs[out][0] for path in self._read(name) for out in self._written(name, path)]
        return found

    def _params(self, stage: str) -> Mapping[str, Any]:
        return self.stages.get(stage, {}).get("params", {}).get(PARAMS, {})

    def _read(self, stage: str) -> dict[str, str]:
        """Path -> its hash when a stage read it, of what stages write."""
        deps = {dep["path"]: dep["md5"] for dep in self.stages.get(stage, {}).get("deps", [])}
        return {path: digest for path, digest in deps.items() if self._written(stage, path)}

    def _written(self, stage: str, path: str) -> list[str]:
        """What stages wrote at a path that a stage reads, or in the folder there."""
        found = [out for out in self._outs if out == path or out.startswith(f"{path}/")]
        if (variants := self._params(stage).get("variants")) is None:
            return found
        # A stage that reads all variants reads those that its profile studied; dvc.lock keeps others, too.
        left_out = {name for name, variant in variants.items() if self.profile in variant.get("skip", [])}
        names = [self._outs[out][0].partition("@")[2] for out in found]
        return [out for out, name in zip(found, names) if not name or name in variants.keys() - left_out]

    def _digest(self, path: str, written: list[str]) -> str:
        """The hash of a path by what was written there; a folder's is DVC's, of a list of the files in it."""
        if path in self._outs:
            return self._outs[path][1]
        return _listed({out.removeprefix(f"{path}/"): self._outs[out][1] for out in written})


def _listed(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the hashes of its files by their paths in it."""
    listed = json.dumps([{"md5": files[path], "relpath": path} for path in sorted(files)], sort_keys=True)
    return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"
