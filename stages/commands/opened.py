"""A finished study as commands open it: the original, what was read of it, and how a model is scored and recovered."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.commands.finished import PROVENANCE, refuse_older_than, refuse_other_profile
from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import statistics
from stages.core.calibration.statistics import Calibration
from stages.core.forms.structure import Sharing
from stages.core.process import devices
from stages.core.process.artifacts import read_json
from stages.core.process.errors import UserError
from stages.core.running.origins import Origins
from stages.core.settings import params
from stages.core.settings.recoveries import Recovery
from stages.core.shrinking.probes import Judge, judge_by
from stages.core.tasks import choice
from stages.core.training import recovery
from stages.core.training.loop import History

MODEL, PERMUTATIONS, MOMENTS = map(Path, ("artifacts/model", "artifacts/permutations.npz", "artifacts/moments"))
READ = ("extract", "align")  # the stages whose artifacts every study opens; with them, those before
SPLITS = {split: Path(f"artifacts/text/{split}.parquet") for split in ("train", "validation", "test")}


def checked(stages: Iterable[str] = READ) -> str:
    """The profile that params.yaml has. Raises UserError where it does not fit the model, without opening that.

    Also where the artifacts are of another profile, not there yet, or not what `stages` would make now.
    """
    profile, origins = params.load().profile, Origins.here()
    refuse_other_profile(origins)
    if missing := [path for path in (MODEL / "config.json", PERMUTATIONS, MOMENTS) if not path.exists()]:
        raise UserError(f"{missing[0]} is not there yet; `make repro` makes it")
    refuse_older_than(stages, profile, origins)
    rules.validate(profile, MODEL)
    return profile


def identity(profile: str) -> dict[str, str]:
    """What the figures of a command are of, for its file of metrics: the profile, and the model's weights."""
    return {"profile": profile, "sha256": read_json(PROVENANCE)["sha256"]}


@dataclass(frozen=True)
class Opened:
    """The study of the profile that params.yaml has, from the repository's root."""

    profile: str
    device: Any
    view: ModelView
    calibration: Calibration

    @classmethod
    def here(cls, keep: float = 0) -> "Opened":
        """Opened on the profile's device. Raises the errors of `checked`.

        keep: bytes of the moments that stay in memory (see `statistics.read`).
        """
        profile = checked()
        device = devices.start(params.section(profile, "runtime"))
        view = ModelView(opening.open_snapshot(MODEL).to(device))
        calibration = statistics.read(PERMUTATIONS, MOMENTS, device, keep)
        return cls(profile, device, view, calibration)

    def section(self, name: str) -> Any:
        """A section of the profile."""
        return params.section(self.profile, name)

    def judge(self, section: str, split: str) -> Judge:
        """What judges models on the head of a split, as long as a section asks for."""
        task = choice.by(MODEL, self.section(section))
        return judge_by(task, task.held_out(SPLITS[split], self.section(section)), self.device)

    def losses(self, section: str, split: str) -> tuple[Callable[[ModelView], np.ndarray], int]:
        """What gives a model's losses on the head of a split, and how many of them in a row are one draw of it."""
        task = choice.by(MODEL, self.section(section))
        held_out = task.held_out(SPLITS[split], self.section(section))
        return lambda view: task.losses(view.to(self.device).model, held_out), task.block

    def recoverer(self, held_out_by: str | None = None) -> Callable[..., History]:
        """What trains a model in place: (model, structure, teacher, what is trained, seed, kept layers).

        held_out_by: the section that says how much validation text chooses the best state, by default that of the
        recovery itself.
        """
        recipe, runtime = self.section("finetune"), self.section("runtime")
        task = choice.by(MODEL, recipe)
        rows = task.training(SPLITS["train"], recipe)
        held_out = task.held_out(SPLITS["validation"], self.section(held_out_by) if held_out_by else recipe.validation)

        def recover(
            changed: ModelView, sharing: Sharing, teacher: ModelView, spec: Recovery, seed: int = recipe.seeds[0],
            kept: Sequence[int] | None = None,
        ) -> History:  # fmt: skip
            return recovery.recover(
                changed, sharing, teacher, task, rows, held_out, recipe, spec, seed,
                autocast=devices.autocast(self.device, runtime.precision), watch=iter, kept=kept,
            )  # fmt: skip

        return recover
