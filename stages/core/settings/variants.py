"""What a variant in params.yaml may say: which layers belong together, what becomes of them, what is trained after.

The defaults are the recipe that most variants share: neurons aligned by what a mismatch costs, to the centre of the
group, a base by regression, a repair by least squares, and a recovery that is distilled from the control. A default
that depends on another value says so in its description; for `finetune`, see `usual_recovery`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Count, Natural, Once, Rate, Section, Several, Text

Alignment = Literal["identity", "pre_activation", "post_activation", "cost"]
Reference = Literal["first", "centre"]


class NoWindows(Section):
    """No layers belong together."""

    choose: Literal["none"]


class Blocks(Section):
    """Consecutive blocks of `size` layers from layer 0."""

    choose: Literal["blocks"]
    size: Several = Field(description="layers of a block")


class _Searched(Section):
    """Windows of any of `sizes`, none of which holds one of `exclude_layers`.

    Where there are many ways to lay several windows, the `shortlist` cheapest by the sum of their single costs
    are compared by validation perplexity.
    """

    sizes: Annotated[list[Several], Once] = Field(min_length=1, description="layers of a window")
    exclude_layers: Annotated[list[Natural], Once] = Field(
        [], description="layers that stay as they are, counted from 0"
    )
    shortlist: Count = Field(4, description="ways to lay several windows that are tried on text")

    @property
    def size(self) -> int:
        """The largest window."""
        return max(self.sizes)


class Best(_Searched):
    """The `count` disjoint windows that cost least."""

    choose: Literal["best"]
    count: Count = Field(1, description="windows")


class Like(Section):
    """What a model stores that shares `count` windows of `size` layers, each with deltas of `rank` and own biases."""

    size: Several = Field(description="layers of a window")
    rank: Natural = Field(description="of the deltas")
    count: Count = Field(1, description="windows")


Target = Annotated[int, Field(ge=1)] | Rate | Like
TARGET = "a number of stored parameters, a share of the original's, or what windows like {size: 4, rank: 8} store"


class Budget(_Searched):
    """As many windows, and for each matrix as much rank, as `target_parameters` ask for."""

    choose: Literal["budget"]
    target_parameters: Target = Field(description=TARGET)


class Forms(Section):
    """For each FFN matrix one of `forms`, or none, by one price of a stored parameter for all matrices.

    share: windows of `sizes` layers share one FFN. drop: layers of little influence are gone.
    """

    choose: Literal["forms"]
    forms: Annotated[list[Literal["low_rank", "sparse", "share", "drop"]], Once] = Field(
        ["low_rank", "sparse"], min_length=1, description="what a matrix, or a layer, may become"
    )
    sizes: Annotated[list[Several], Once] = Field(
        [2, 3], min_length=1, description="layers of a window, where `forms` has share"
    )
    refit: bool = Field(
        False,
        description="whether the best of the sets of forms are tried again, output matrices fitted in their own stream",
    )
    target_parameters: Target = Field(description=TARGET)

    @property
    def size(self) -> int:
        """The largest window, 1 where nothing is shared."""
        return max(self.sizes) if "share" in self.forms else 1


class Layers(Section):
    """No windows, but layers to leave out: one after the other, by perplexity, until `target_parameters` are reached.

    Each time the `shortlist` of least block influence are tried.
    """

    choose: Literal["layers"]
    shortlist: Count = Field(4, description="layers that are tried before one goes")
    target_parameters: Target = Field(description=TARGET)


class Keep(Section):
    """The original."""

    method: Literal["none"]


class _Merging(Section):
    """How layers of a group are laid upon each other, and become one FFN."""

    alignment: Alignment = Field("cost", description="what neurons are matched by: correlations at a site, or the cost")
    reference: Reference = Field("centre", description="the layer of a group that the others are matched to")
    base: Literal["first", "mean", "regression"] = Field("regression", description="the FFN that a group shares")

    @property
    def reads_text(self) -> bool:
        """Whether its `repair` is fitted to calibration text; the others are sums of weights, or none."""
        return self.repair not in ("none", "differences")


def _own_where_layers_differ(share: dict[str, Any]) -> str:
    return "shared" if share["delta"] == "none" and not share["bias_correction"] else "own"


def _repaired_without_deltas(share: dict[str, Any]) -> str:
    return "least_squares" if share["delta"] == "none" else "none"


class Share(_Merging):
    """Depth stays; the layers of a group share one FFN weight, each with a low-rank delta of its own.

    repair: `least_squares` fits the output matrix that they share, and its deltas, to what each layer answered to
    calibration text.
    """

    method: Literal["share"]
    delta: Literal["none", "zero", "svd", "weighted", "joint"] = Field("none", description="how a delta starts")
    rank: Natural = Field(0, description="of the deltas; 0 exactly where delta is none")
    bias_correction: bool = Field(False, description="whether a layer's own biases take up its mean error")
    gains: Literal["fixed_base", "moving_base"] = Field(
        "fixed_base", description="what a budget takes a rank to be worth: with the base as it is, or moving with it"
    )
    biases: Literal["own", "shared"] = Field(
        default_factory=_own_where_layers_differ,
        description="default: own with deltas or bias_correction, shared without",
    )
    repair: Literal["none", "least_squares"] = Field(
        default_factory=_repaired_without_deltas, description="default: least_squares without deltas, none with"
    )
    refit_others: bool = Field(
        False, description="whether output matrices that nobody shares are fitted again, in the model's own stream"
    )

    @property
    def reads_text(self) -> bool:
        """Whether anything is fitted to calibration text itself."""
        return self.repair != "none" or self.refit_others

    @model_validator(mode="after")
    def _rank_fits_delta(self):
        if (self.rank > 0) != (self.delta != "none"):
            raise ValueError(f"rank = {self.rank} with delta = {self.delta}: rank is 0 exactly where delta is none")
        if self.delta == "joint" and self.base != "regression":
            raise ValueError(f"delta = joint fits its base too, by regression; base = {self.base} contradicts it")
        if self.gains == "moving_base" and self.delta != "joint":
            raise ValueError(f"gains = moving_base: only delta = joint moves the base; delta = {self.delta} does not")
        if self.bias_correction and self.biases == "shared":
            raise ValueError("bias_correction needs biases = own: each layer's bias takes up its own error")
        if self.repair != "none" and self.delta != "none" and self.biases == "shared":
            raise ValueError(f"repair = {self.repair} with deltas needs biases = own: each layer's fit has its own")
        return self


class Collapse(_Merging):
    """A group becomes one layer: the first one's attention and norms, the merged FFN.

    repair: `differences` adds up what the others differ from the first; `scale` and `least_squares` fit one factor, or
    the output matrix, to what the group did to calibration text.
    """

    method: Literal["collapse"]
    alignment: Alignment = Field("identity", description="what neurons are matched by")
    base: Literal["first", "mean", "regression"] = Field("first", description="the FFN that a group becomes")
    reference: Reference = Field("first", description="the layer of a group that the others are matched to")
    repair: Literal["none", "differences", "scale", "least_squares"] = Field(
        "least_squares", description="what makes up for the layers that are gone"
    )

    @model_validator(mode="after")
    def _repair_fits_base(self):
        if self.repair == "differences" and self.base != "first":
            raise ValueError(f"repair = differences starts from the first layer; base = {self.base} contradicts it")
        return self


EITHER = "method = drop takes either layers or target_parameters"


class Drop(Section):
    """The model without its least influential layers: so many, or the fewest that reach `target_parameters`.

    Neither is said where `windows.choose = layers` has found the layers.
    """

    method: Literal["drop"]
    layers: Count | None = Field(None, description="how many; or target_parameters")
    target_parameters: Target | None = Field(None, description=TARGET)

    @model_validator(mode="after")
    def _one_of_two(self):
        if self.layers is not None and self.target_parameters is not None:
            raise ValueError(EITHER)
        return self


class LowRank(Section):
    """Each FFN matrix alone as a product of two thin ones, stored so.

    ranks: `equal` gives each matrix the same share of its parameters, `filled` the next rank to where it helps most,
    and leaves a matrix dense where that helps more.
    basis: so many layers in a row hold one factor B for `in`, and one for `gate` (Basis Sharing, Wang et al. 2024,
    arXiv:2410.03765).
    """

    method: Literal["low_rank"]
    fit: Literal["svd", "weighted"] = Field(description="to the matrix, or to what it does to calibration text")
    ranks: Literal["equal", "filled"] = Field(description="how the target is spread over the matrices")
    basis: Count = Field(1, description="layers in a row that share the factors which read the FFN's input")
    bias_correction: bool = Field(False, description="whether biases take up a matrix's mean error")
    target_parameters: Target = Field(description=TARGET)

    @model_validator(mode="after")
    def _basis_fits_fit(self):
        if self.basis > 1 and self.fit != "weighted":
            raise ValueError(f"basis = {self.basis} with fit = {self.fit}: a shared basis is fitted by fit = weighted")
        return self


class Prune(Section):
    """The smallest entries of the FFN matrices are zero and stay so; the target counts those that are not.

    scope: the smallest of each `row` (one output's entries), of each `matrix`, or of `all` together.
    score: an entry's `magnitude`, or its magnitude times the root mean square of the `input` that it multiplies.
    """

    method: Literal["prune"]
    score: Literal["magnitude", "input"] = Field("magnitude", description="what makes an entry small")
    scope: Literal["row", "matrix", "all"] = Field("all", description="which entries are compared")
    target_parameters: Target = Field(description=TARGET)


class Mix(Section):
    """Each FFN matrix in the form that `windows.choose = forms` has found for it."""

    method: Literal["mix"]


class External(Section):
    """Another checkpoint with the same vocabulary: a hub id, or a folder (best below data/local/model)."""

    method: Literal["external"]
    model: Text = Field(description="a hub id, or a folder")
    revision: Text | None = Field(None, description="a branch, tag or commit of the hub; null is its newest")


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


Chosen = Annotated[NoWindows | Blocks | Best | Budget | Forms | Layers, Field(discriminator="choose")]
Surgery = Annotated[Keep | Share | Collapse | Drop | LowRank | Prune | Mix | External, Field(discriminator="method")]

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

# What may leave a model with other layers than the original's, so that hidden states cannot be compared in pairs.
SHALLOWER = {"collapse", "drop", "external"}


def _shallower(method: str, forms: Any) -> bool:
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
        distill = {"logits": 0.5, "hidden": 0.0 if _shallower(method, forms) else 20.0} | distill
    asks = distill is not None or bool(said.get("warm_start"))
    return {"teacher": "control" if asks else "original"} | said | {"distill": distill}


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
            if _shallower(method, getattr(self.windows, "forms", None)):
                raise ValueError(f"finetune.distill.hidden needs the original's layers, which {method} does not keep")
        if self.finetune.warm_start > 0 and method != "share":
            raise ValueError(f"finetune.warm_start needs surgery.method = share, not {method}")
        return self
