"""The files that a recovery reads and leaves."""

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path

from stages.core.process.artifacts import replacing


@dataclass(frozen=True)
class Inputs:
    """What a recovery reads: two checkpoints, the second to be asked or None, and the tokens of two splits."""

    model: Path
    teacher: Path | None
    tokens: Path
    validation: Path

    def paths(self) -> list[Path]:
        """All there are."""
        return [path for path in astuple(self) if path]


@dataclass(frozen=True)
class Outputs:
    """What is left of a recovery: a checkpoint (those of further seeds below it), a curve of losses, its history."""

    checkpoint: Path
    curve: Path
    history: Path

    @classmethod
    def within(cls, folder: Path) -> "Outputs":
        """All three in one folder."""
        return cls(folder / "model", folder / "curve.csv", folder / "course.json")

    def copy_from(self, other: "Outputs") -> None:
        """Become what another recovery has left."""
        for source, target in zip(astuple(other), astuple(self)):
            with replacing(target) as draft:
                shutil.copytree(source, draft) if source.is_dir() else shutil.copyfile(source, draft)
