"""A linear head on a decoder: one label for a text, read off the last real token's final hidden state.

Rows are padded on the right. Attention is causal, so a real token sees no padding, and the state is taken at the
last real position: padding cannot influence it.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.process.artifacts import parquet_writer
from stages.core.settings.profiles import HeadRecipe
from stages.core.training.loop import train


class Classifier(nn.Module):
    """A decoder under a linear head; the states are first standardised by fixed figures of the train split.

    Without that a state's few huge entries drown the rest, and a head alone learns next to nothing at one rate.
    """

    def __init__(self, model: Any, labels: int, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.model, self.head = model, nn.Linear(len(mean), labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def answer(self, states: Tensor) -> Tensor:
        """Logits (n, labels) of final states (n, width)."""
        return self.head((states.float() - self.mean) / self.deviation)

    def forward(self, rows: Sequence[Tensor]) -> Tensor:
        """Logits (n, labels) of n rows of token ids."""
        return self.answer(last_states(self.model, rows))


def last_states(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """The state after the final norm of each row's last token: (n, width) for n rows of ids (length,)."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    states = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    return states[torch.arange(len(rows), device=device), lengths - 1]


@torch.no_grad()
def features(model: Any, rows: Sequence[Tensor], size: int, watch: Callable[[Iterable], Iterable] = iter) -> Tensor:
    """`last_states` of any number of rows, float32, rows of like length together so that little is padded."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    found = [last_states(model, [rows[row] for row in batch]).float() for batch in watch(batches)]
    return torch.cat(found)[torch.tensor(order).argsort()]


def fit(
    model: Any,
    tuned: list[nn.Parameter],
    rows: Sequence[Tensor],
    labels: Tensor,
    states: Tensor,
    recipe: HeadRecipe,
    seed: int,
    **options: Any,
) -> Classifier:
    """A head trained on labelled rows, together with the parameters `tuned` of the model (in place).

    `states` are the rows' features under the untouched model: they give the figures by which states are standardised,
    and where nothing is tuned they are all that the head is trained on. labels: int64 (n,), from 0 without gaps.
    `options` go to the training loop. Raises UserError where the training diverges.
    """
    deviation = states.std(0, correction=0).clamp_min(1e-6)
    classifier = Classifier(model, int(labels.max()) + 1, states.mean(0), deviation).to(states.device)
    labels = labels.to(states.device)

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier([rows[row] for row in batch]) if tuned else classifier.answer(states[batch])
        loss = nn.functional.cross_entropy(logits.float(), labels[batch])
        return loss, loss

    rates = [(list(classifier.head.parameters()), recipe.learning_rate.head)]
    if tuned:
        rates.append((tuned, recipe.learning_rate.model))
    train(classifier, len(rows), objective, rates, recipe, seed, **options)
    return classifier


@torch.no_grad()
def probabilities(classifier: Classifier, states: Tensor) -> Tensor:
    """Each label's probability, float32 (n, labels), from the rows' features under the classifier's own model."""
    return classifier.answer(states).softmax(-1).cpu()


def keep(path: Path, labels: Tensor, probabilities: Tensor) -> None:
    """A parquet table, one row a test text: row, label, predicted, score (the probability of what was predicted)."""
    import pyarrow as pa

    score, predicted = probabilities.max(1)
    columns = {
        "row": pa.array(range(len(labels)), pa.int32()),
        "label": pa.array(labels.numpy(), pa.int8()),
        "predicted": pa.array(predicted.numpy(), pa.int8()),
        "score": pa.array(score.numpy(), pa.float32()),
    }
    table = pa.table(columns)
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
