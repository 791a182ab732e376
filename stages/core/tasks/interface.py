"""The interface of a task: what training and search need to know of it, whatever an example is."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """A task that a model is trained for. Examples are the rows of one tensor.

    How a model opens is the concern of stages.core.architecture.opening, which today opens causal language models.
    """

    def outputs(self, model: Any, examples: Tensor, hidden_states: bool = False) -> Any:
        """The model's outputs for a batch: `logits` and, if asked for, `hidden_states`, one tensor a layer."""
        ...

    def loss(self, outputs: Any, examples: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar, from its outputs."""
        ...

    def score(self, model: Any, held_out: Tensor, watch: Callable[[Iterable], Iterable] = iter) -> float:
        """How well a model does on held-out data; lower is better. `watch` may wrap the batches in a progress bar.

        Raises UserError where the score is not finite.
        """
        ...
