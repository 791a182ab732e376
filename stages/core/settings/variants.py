"""What a variant in params.yaml may say: which layers belong together, what becomes of them, what is trained after."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Count, Natural, Rate, Section

Size = Annotated[int, Field(ge=2)]
Alignment = Literal["identity", "pre_activation", "post_activation", "cost"]
Reference = Literal["first", "centre"]


class NoWindows(Section):
    choose: Literal["none"]


class Blocks(Section):
    """Consecutive blocks of `size` layers from layer 0."""

    choose: Literal["blocks"]
    size: Size


class _Searched(Section):
    """Windows of any of `sizes`, none of which holds one of `exclude_layers`.

    Where there are many ways to lay several windows, the `shortlist` cheapest by the sum of their single costs
    are compared by validation perplexity.
    """

    sizes: Annotated[list[Size], Field(min_length=1)]
    exclude_layers: list[Natural] = []
    shortlist: Count = 4

    @model_validator(mode="after")
    def _sizes_differ(self):
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("the sizes must differ")
        return self

    @property
    def size(self) -> int:
        """The largest window."""
        return max(self.sizes)


class Best(_Searched):
    """The `count` disjoint windows that cost least."""

    choose: Literal["best"]
    count: Count = 1


class Like(Section):
    """What a model stores that shares `count` windows of `size` layers, each with deltas of `rank` and own biases."""

    size: Size
    rank: Natural
    count: Count = 1


Target = Annotated[int, Field(ge=1)] | Rate | Like


class Budget(_Searched):
    """As many windows, and for each matrix as much rank, as `target_parameters` ask for.

    `target_parameters` is a number of stored parameters, a share of the original's, or those of windows like some.
    """

    choose: Literal["budget"]
    target_parameters: Target


class Keep(Section):
    method: Literal["none"]


class _Merging(Section):
    """How layers of a group are laid upon each other, and become one FFN."""

    alignment: Alignment
    reference: Reference = "first"
    base: Literal["first", "mean", "regression"]
    repair: str = "none"

    @property
    def reads_text(self) -> bool:
        """Whether its `repair` is fitted to calibration text; the others are sums of weights, or none."""
        return self.repair not in ("none", "differences")


class Share(_Merging):
    """Depth stays; the layers of a group share one FFN weight, each with a low-rank delta of its own.

    repair: `least_squares` fits the output matrix that they share to what each layer answered to calibration text.
    """

    method: Literal["share"]
    delta: Literal["none", "zero", "svd", "weighted", "joint"]
    rank: Natural
    biases: Literal["own", "shared"]
    bias_correction: bool = False
    repair: Literal["none", "least_squares"] = "none"

    @model_validator(mode="after")
    def _rank_fits_delta(self):
        if (self.rank > 0) != (self.delta != "none"):
            raise ValueError(f"rank = {self.rank} with delta = {self.delta}: rank is 0 exactly where delta is none")
        if self.delta == "joint" and self.base != "regression":
            raise ValueError(f"delta = joint fits its base too, by regression; base = {self.base} contradicts it")
        if self.bias_correction and self.biases == "shared":
            raise ValueError("bias_correction needs biases = own: each layer's bias takes up its own error")
        if self.repair != "none" and self.delta != "none":
            raise ValueError(f"repair = {self.repair} takes no deltas; delta = {self.delta} contradicts it")
        return self


class Collapse(_Merging):
    """A group becomes one layer: the first one's attention and norms, the merged FFN.

    repair: `differences` adds up what the others differ from the first; `scale` and `least_squares` fit one factor, or
    the output matrix, to what the group did to calibration text.
    """

    method: Literal["collapse"]
    repair: Literal["none", "differences", "scale", "least_squares"] = "none"

    @model_validator(mode="after")
    def _repair_fits_base(self):
        if self.repair == "differences" and self.base != "first":
            raise ValueError(f"repair = differences starts from the first layer; base = {self.base} contradicts it")
        return self


class Drop(Section):
    """The model without its least influential layers: so many, or the fewest that reach `target_parameters`."""

    method: Literal["drop"]
    layers: Count | None = None
    target_parameters: Target | None = None

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.layers is None) == (self.target_parameters is None):
            raise ValueError("method = drop takes either layers or target_parameters")
        return self


class LowRank(Section):
    """Each FFN matrix alone as a product of two thin ones, stored so.

    ranks: `equal` gives each matrix the same share of its parameters, `filled` the next rank to where it helps most.
    """

    method: Literal["low_rank"]
    fit: Literal["svd", "weighted"]
    ranks: Literal["equal", "filled"]
    bias_correction: bool = False
    target_parameters: Target


class Prune(Section):
    """The smallest entries of the FFN matrices are zero and stay so; the target counts those that are not.

    scope: the smallest of each `matrix`, or of `all` together.
    """

    method: Literal["prune"]
    scope: Literal["matrix", "all"]
    target_parameters: Target


class External(Section):
    """Another checkpoint with the same vocabulary: a hub id, or a folder (best below data/local/model)."""

    method: Literal["external"]
    model: str
    revision: str | None = None


class Distill(Section):
    """loss = (1 - logits) CE + logits T^2 KL(teacher || variant) + hidden x relative squared error of the states."""

    logits: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    hidden: Annotated[float, Field(ge=0)] = 0.0


class Recovery(Section):
    """What is trained, and towards what.

    train: every weight; the `window` (deltas, bases, norms and biases of the shared layers); or only the deltas.
    frobenius: weight of the penalty on ||A B||^2, or on ||A B - A_0 B_0||^2 where `around` is start.
    warm_start: share of the steps in which each changed FFN learns to answer like the teacher's on its own inputs.
    teacher: who is asked: the original as it is, or as the control, which has learnt the train split (the teacher
    correction of Sreenivas et al. 2024, arXiv:2408.11796).
    rate: times the profile's learning rates; a start close to the original is only harmed by what a broken one needs.
    """

    train: Literal["all", "window", "deltas"]
    frobenius: Annotated[float, Field(ge=0)]
    around: Literal["zero", "start"] = "zero"
    distill: Distill | None = None
    teacher: Literal["original", "control"] = "original"
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rate: Annotated[float, Field(gt=0, le=10)] = 1.0

    @model_validator(mode="after")
    def _a_teacher_is_asked(self):
        if self.teacher == "control" and not (self.distill or self.warm_start):
            raise ValueError("teacher = control: nobody asks a teacher without distill or warm_start")
        return self


CONTROL = Recovery(train="all", frobenius=0.0)  # of the original, by stage `control`


def is_control(surgery: Section, finetune: Recovery) -> bool:
    """Whether a variant is the original, recovered as stage `control` does it."""
    return surgery.method == "none" and finetune == CONTROL


Chosen = Annotated[NoWindows | Blocks | Best | Budget, Field(discriminator="choose")]
Surgery = Annotated[Keep | Share | Collapse | Drop | LowRank | Prune | External, Field(discriminator="method")]

# Which ways to choose layers go with which surgery.
FITTING = {
    "none": {"none"},
    "share": {"blocks", "best", "budget"},
    "collapse": {"blocks", "best"},
    "drop": {"none"},
    "low_rank": {"none"},
    "prune": {"none"},
    "external": {"none"},
}

# What may leave a model with other layers than the original's, so that hidden states cannot be compared in pairs.
SHALLOWER = {"collapse", "drop", "external"}


class Variant(Section):
    windows: Chosen
    surgery: Surgery
    finetune: Recovery

    @model_validator(mode="after")
    def _parts_agree(self):
        method, chosen = self.surgery.method, self.windows.choose
        if chosen not in FITTING[method]:
            raise ValueError(
                f"windows.choose = {chosen} with surgery.method = {method}, "
                f"which takes {' or '.join(sorted(FITTING[method]))}"
            )
        deltas = getattr(self.surgery, "rank", 0) > 0
        if chosen == "budget" and not deltas:
            raise ValueError("windows.choose = budget needs a surgery with a delta: it chooses the ranks too")
        if self.finetune.train == "deltas" and not deltas:
            raise ValueError("finetune.train = deltas needs a surgery with a delta (method share, rank above 0)")
        if self.finetune.train == "window" and method != "share":
            raise ValueError(f"finetune.train = window needs surgery.method = share, not {method}")
        if self.finetune.frobenius > 0 and not deltas:
            raise ValueError(f"finetune.frobenius = {self.finetune.frobenius} needs a surgery with a delta")
        if self.finetune.distill and self.finetune.distill.hidden > 0 and method in SHALLOWER:
            raise ValueError(f"finetune.distill.hidden needs the original's layers, which {method} does not keep")
        if self.finetune.warm_start > 0 and method != "share":
            raise ValueError(f"finetune.warm_start needs surgery.method = share, not {method}")
        return self
