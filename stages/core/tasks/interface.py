"""The interface of a task: all that stages need to know of it. stages.core.tasks.choice gives a model's task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor

from stages.core.architecture.view import ModelView

Watch = Callable[[Iterable], Iterable]  # may wrap an iterable in a progress bar


class Examples(Protocol):
    """The examples of a split: a tensor of token rows, or images. A slice of them is examples, too."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any) -> Any:
        """For example numbers, int64, (n,): a batch, which has a length and `to(device)`."""
        ...


@dataclass(frozen=True)
class CalibrationRows:
    """The head of the train split, which activations, moments and repairs are computed on.

    batches: inputs of forward passes, read one by one. kept: what the file for repairs holds: the inputs that they run
    on as `rows`, one tensor, and `tokens_per_row` where the second axis of the rows does not run over their tokens.
    known: what the report says about the rows, their sha256 included.
    """

    batches: Sequence[Tensor]
    kept: Mapping[str, Tensor]
    known: Mapping[str, Any]


class Measured(NamedTuple):
    """What is measured of a model on the test split.

    figures: `perplexity` and what else the task has. losses: those of `Task.losses`.
    """

    figures: dict[str, float]
    losses: np.ndarray


class Task(Protocol):
    """A task that a model is trained for.

    unit: what figures count, `tokens` or `images`. block: how many losses in a row of a split count as one draw of it,
    because neighbours are alike. Methods that take a `section` take one of params.yaml, in the form that
    stages.core.settings has for this task.
    """

    unit: str
    block: int

    @classmethod
    def by(cls, section: Any) -> Self:
        """The task with the sizes of a section that scores or trains: its batches, for language its windows."""
        ...

    @classmethod
    def calibration(cls, view: ModelView, table: Path, section: Any) -> CalibrationRows:
        """The calibration rows by section `extract`. Raises UserError where the split is too short."""
        ...

    @classmethod
    def training(cls, table: Path, section: Any) -> Examples:
        """The examples of the train split that section `finetune` asks for."""
        ...

    @classmethod
    def held_out(cls, table: Path, section: Any) -> Any:
        """What `score` and `measure` take: the head of a split, as long as a section asks for. It has a length."""
        ...

    @classmethod
    def other(cls, table: Path, section: Any) -> Any | None:
        """What `score` takes of another text, which nothing was trained, calibrated or chosen on; None without one."""
        ...

    @classmethod
    def units(cls, examples: Examples) -> int:
        """How many of `unit` an example counts for."""
        ...

    def inputs(self, batch: Any) -> Tensor:
        """What the model reads of a batch."""
        ...

    def outputs(self, model: Any, batch: Any, hidden_states: bool = False) -> Any:
        """The model's outputs for a batch: `logits` and, if asked for, `hidden_states`, one tensor a layer or stage."""
        ...

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar, from its outputs."""
        ...

    def score(self, model: Any, held_out: Any, watch: Watch = iter) -> float:
        """exp of the mean cross-entropy on held-out data, which searches, budgets and trainings minimise.

        Raises UserError where it is not finite.
        """
        ...

    def losses(self, model: Any, held_out: Any, watch: Watch = iter) -> np.ndarray:
        """What `score` is exp of the mean of, in nats, in the order of the data, float64, (n,)."""
        ...

    def reference(self, model: Any, held_out: Any) -> Any:
        """What a model answers to held-out data, as distributions that `divergence` compares another's with."""
        ...

    def divergence(self, model: Any, held_out: Any, reference: Any) -> float:
        """The mean of KL(reference || model) over the answers that `score` counts, in nats, at least 0.

        It is what a change does to the answers, and needs far less data than a difference of two scores.
        """
        ...

    def measure(self, model: Any, held_out: Any, others: Any, watch: Watch = iter) -> Measured:
        """`score` as `perplexity`, and what else is measured on the test split. others: the rows beside it."""
        ...

    @classmethod
    def time(
        cls, models: dict[str, Any], table: Path, section: Any, device: Any, watch: Watch = iter
    ) -> dict[str, Any]:
        """The times of the models `original` and `variant`, taken in turns, and the `speedup`."""
        ...

    @classmethod
    def external(cls, model: str, revision: str | None, original: ModelView, processor: Path) -> Any:
        """Another checkpoint, which is to be measured as the original is. Raises UserError where it cannot be."""
        ...

    @classmethod
    def samples(cls, model: Any, processor: Path, table: Path, section: Any, watch: Watch = iter) -> list[dict]:
        """What a model answers, for people to look at. processor: the folder of the tokenizer or image processor."""
        ...
