"""The files that a recovery reads and writes."""

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

from stages.core.process.artifacts import replacing


@dataclass(frozen=True)
class Inputs:
    """The files that a recovery reads: the checkpoint, the teacher's or None, and the tokens of two splits."""

    model: Path
    teacher: Path | None
    tokens: Path
    validation: Path

    def paths(self) -> list[Path]:
        """Every file that there is."""
        return [path for path in astuple(self) if path]


@dataclass(frozen=True)
class Outputs:
    """The files that a recovery writes: checkpoint (below it those of further seeds), loss curve and history."""

    checkpoint: Path
    curve: Path
    history: Path

    @classmethod
    def within(cls, folder: Path) -> "Outputs":
        """The three files in one folder."""
        return cls(folder / "model", folder / "curve.csv", folder / "course.json")

    def copy_from(self, other: "Outputs") -> None:
        """Copy the files of another recovery to these paths."""
        for source, target in zip(astuple(other), astuple(self)):
            with replacing(target) as draft:
                shutil.copytree(source, draft) if source.is_dir() else shutil.copyfile(source, draft)
