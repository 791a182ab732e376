"""Section `windows` of a variant: which layers of the original belong together, or go."""

from typing import Annotated, Literal

from pydantic import Field

from stages.core.settings.section import Count, Natural, Once, Rate, Section, Several


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


Chosen = Annotated[NoWindows | Blocks | Best | Budget | Forms | Layers, Field(discriminator="choose")]
