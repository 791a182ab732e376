"""Section `surgery` of a variant: what becomes of the layers.

The defaults are the recipe that most variants share: neurons aligned by what a mismatch costs, to the centre of the
group, a base by regression, a repair by least squares.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Count, Natural, Section, Text
from stages.core.settings.windows import TARGET, Target

Alignment = Literal["identity", "pre_activation", "post_activation", "cost"]
Reference = Literal["first", "centre"]


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


Surgery = Annotated[Keep | Share | Collapse | Drop | LowRank | Prune | Mix | External, Field(discriminator="method")]
