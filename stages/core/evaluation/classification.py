"""A linear head on a decoder, which labels a text by the final hidden state of its last token.

Rows are padded on the right. Attention is causal and the state is that of the last real token, so padding has no
influence on it, and no mask is needed.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.process.artifacts import parquet_writer
from stages.core.settings.trainings import HeadRecipe
from stages.core.training.loop import train


class Classifier(nn.Module):
    """A decoder with a linear head on states that are standardised by the mean and deviation of the train split.

    A state has a few entries that are many times larger than the others. Without standardisation a head alone hardly
    learns at one learning rate.
    """

    def __init__(self, model: Any, labels: int, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.model, self.head = model, nn.Linear(len(mean), labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def head_logits(self, states: Tensor) -> Tensor:
        """Logits (n, labels) of final states (n, d_model)."""
        return self.head((states.float() - self.mean) / self.deviation)

    def forward(self, rows: Sequence[Tensor]) -> Tensor:
        """Logits (n, labels) of n rows of token ids."""
        return self.head_logits(last_states(self.model, rows))


def last_states(model: Any, rows: Sequence[Tensor]) -> Tensor:
    """The state of each row's last token after the final norm: (n, d_model) for n rows of ids, (length,) each."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
    states = model.base_model(ids, use_cache=False).last_hidden_state
    return states[torch.arange(len(rows), device=device), lengths - 1]


@torch.no_grad()
def features(model: Any, rows: Sequence[Tensor], size: int, watch: Callable[[Iterable], Iterable] = iter) -> Tensor:
    """`last_states` of any number of rows, float32, (n, d_model), in batches of rows of similar length."""
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
    """A head trained on labelled rows, together with the parameters `tuned` of the model, which change in place.

    labels: int64, (n,), from 0 without gaps. states: `features` of the rows before the training; they give the mean
    and deviation of the standardisation, and if nothing is tuned the head is trained on them. options: of
    `stages.core.training.loop.train`. Raises UserError where the training diverges.
    """
    deviation = states.std(0, correction=0).clamp_min(1e-6)
    classifier = Classifier(model, int(labels.max()) + 1, states.mean(0), deviation).to(states.device)
    labels = labels.to(states.device)

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier([rows[row] for row in batch]) if tuned else classifier.head_logits(states[batch])
        loss = nn.functional.cross_entropy(logits.float(), labels[batch])
        return loss, loss

    rates = [(list(classifier.head.parameters()), recipe.learning_rate.head)]
    if tuned:
        rates.append((tuned, recipe.learning_rate.model))
    # Features have no length: a head alone is trained in the plain order.
    lengths = torch.tensor([len(row) for row in rows]) if tuned else None
    train(classifier, len(rows), objective, rates, recipe, seed, lengths=lengths, **options)
    return classifier


@torch.no_grad()
def probabilities(classifier: Classifier, states: Tensor) -> Tensor:
    """The probability of each label, float32, (n, labels), from `features` of the classifier's own model."""
    return classifier.head_logits(states).softmax(-1).cpu()


def keep(path: Path, labels: Tensor, probabilities: Tensor) -> None:
    """Write a parquet table, one row for each text: row, label, predicted, score (the probability of `predicted`)."""
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
