"""A variant in params.yaml: which layers belong together, what becomes of them, what is trained after.

Its sections have modules of their own: windows, surgeries and, for `finetune`, recoveries. A default that depends on
another value says so in its description; for `finetune`, see `usual_recovery`.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from stages.core.settings.recoveries import Recovery, is_shallower, usual_recovery
from stages.core.settings.section import Once, Section
from stages.core.settings.surgeries import EITHER, Surgery
from stages.core.settings.windows import Chosen

# Which ways to choose layers go with which surgery.
FITTING = {
    "none": {"none"},
    "share": {"blocks", "best", "budget"},
    "collapse": {"blocks", "best"},
    "drop": {"none", "layers"},
    "low_rank": {"none"},
    "prune": {"none"},
    "mix": {"forms"},
    "external": {"none"},
}


class Variant(Section):
    """A model made from the original. Every section is there, as DVC asks for it; {} leaves it at its defaults."""

    windows: Chosen
    surgery: Surgery
    finetune: Recovery
    skip: Annotated[list[str], Once] = Field(
        [], description="profiles that leave this variant out, as their models cannot have it"
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_recovery(cls, said: Any) -> Any:
        match said:
            case {"surgery": {"method": str(method)}, "finetune": dict(finetune)}:
                windows = said.get("windows")
                forms = windows.get("forms") if isinstance(windows, dict) else None
                return said | {"finetune": usual_recovery(method, finetune, forms)}
        return said

    @model_validator(mode="after")
    def _parts_agree(self):
        method, chosen = self.surgery.method, self.windows.choose
        if chosen not in FITTING[method]:
            raise ValueError(
                f"windows.choose = {chosen} with surgery.method = {method}, "
                f"which takes {' or '.join(sorted(FITTING[method]))}"
            )
        if method == "drop" and (chosen == "none") == (self.surgery.layers is self.surgery.target_parameters):
            raise ValueError(EITHER if chosen == "none" else "windows.choose = layers has the target; surgery has none")
        deltas = getattr(self.surgery, "rank", 0) > 0
        if chosen == "budget" and not deltas:
            raise ValueError("windows.choose = budget needs a surgery with a delta: it chooses the ranks too")
        if self.finetune.train == "deltas" and not deltas:
            raise ValueError("finetune.train = deltas needs a surgery with a delta (method share, rank above 0)")
        if self.finetune.train == "window" and method != "share":
            raise ValueError(f"finetune.train = window needs surgery.method = share, not {method}")
        if self.finetune.frobenius > 0 and not deltas:
            raise ValueError(f"finetune.frobenius = {self.finetune.frobenius} needs a surgery with a delta")
        if self.finetune.distill and self.finetune.distill.hidden > 0:
            if is_shallower(method, getattr(self.windows, "forms", None)):
                raise ValueError(f"finetune.distill.hidden needs the original's layers, which {method} does not keep")
        if self.finetune.warm_start > 0 and method != "share":
            raise ValueError(f"finetune.warm_start needs surgery.method = share, not {method}")
        return self
