"""Section `finetune` of a variant: what is trained after surgery, and towards what."""

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Section


class Distill(Section):
    """loss = (1 - logits) CE + logits T^2 KL(teacher || variant) + hidden x relative squared error of the states."""

    logits: float = Field(ge=0, le=1, description="weight of the teacher's logits against the text")
    temperature: float = Field(1.0, gt=0, description="divides both models' logits")
    hidden: float = Field(0.0, ge=0, description="weight of the hidden states' relative squared error")

    @model_validator(mode="after")
    def _something_is_learnt(self):
        if not (self.logits or self.hidden):
            raise ValueError("logits = 0 and hidden = 0 learn nothing from the teacher; write distill: null")
        return self


class Recovery(Section):
    """What is trained, and towards what. What params.yaml leaves out of `distill` and `teacher`, `usual_recovery` says.

    train: every weight; the `window` (deltas, bases, norms and biases of the shared layers); or only the deltas.
    teacher: who is asked: the original as it is, or as the control, which has learnt the train split (the teacher
    correction of Sreenivas et al. 2024, arXiv:2408.11796).
    rate: a start close to the original may want smaller steps than a broken one.
    """

    train: Literal["all", "window", "deltas"] = Field("all", description="which weights")
    frobenius: float = Field(0.0, ge=0, description="weight of the penalty on deltas, ||A B||^2")
    around: Literal["zero", "start"] = Field("zero", description="`start` makes that penalty ||A B - A_0 B_0||^2")
    distill: Distill | None = Field(
        None,
        description="what is learnt from the teacher; see usual_recovery where a variant does not say; null: nothing",
    )
    teacher: Literal["original", "control"] = Field(
        "original", description="who is asked; the control where a variant asks and does not say"
    )
    warm_start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps in which a changed FFN learns the teacher's answers",
    )
    rate: float = Field(1.0, gt=0, le=10, description="times the profile's learning rates")

    @model_validator(mode="after")
    def _a_teacher_is_asked(self):
        if self.teacher == "control" and not (self.distill or self.warm_start):
            raise ValueError("teacher = control: nobody asks a teacher without distill or warm_start")
        if self.around == "start" and not self.frobenius:
            raise ValueError("around = start: it is of the penalty on deltas, which frobenius = 0 leaves out")
        return self


CONTROL = Recovery()  # of the original, by stage `control`


def is_control(surgery: Section, finetune: Recovery) -> bool:
    """Whether a variant is the original, recovered as stage `control` does it."""
    return surgery.method == "none" and finetune == CONTROL


# What may leave a model with other layers than the original's, so that hidden states cannot be compared in pairs.
SHALLOWER = {"collapse", "drop", "external"}


def is_shallower(method: str, forms: Any) -> bool:
    """Whether a variant may have other layers than the original; forms: what `windows.forms` says, if it does."""
    return method in SHALLOWER or (method == "mix" and isinstance(forms, list) and "drop" in forms)


def usual_recovery(method: str, said: dict[str, Any], forms: Any = None) -> dict[str, Any]:
    """A variant's `finetune`, its `distill` and `teacher` filled in where params.yaml does not say them.

    distill: {logits: 0.5, hidden: 20.0}, each unless it is said; hidden: 0.0 where layers may be gone (SHALLOWER).
    teacher: the control where one is asked, by `distill` or `warm_start`.
    The original (method none) asks no teacher, as it is the control itself: nothing is filled in.
    """
    if method == "none":
        return said
    distill = said.get("distill", {})
    if isinstance(distill, dict):
        distill = {"logits": 0.5, "hidden": 0.0 if is_shallower(method, forms) else 20.0} | distill
    asks = distill is not None or bool(said.get("warm_start"))
    return {"teacher": "control" if asks else "original"} | said | {"distill": distill}
