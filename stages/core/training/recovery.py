"""The recovery of a model after surgery: which of its parameters are trained, and towards what."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.core.architecture.depth import record_blocks
from stages.core.architecture.view import ModelView
from stages.core.forms import structure
from stages.core.forms.structure import Sharing
from stages.core.settings.images import FinetuneImages
from stages.core.settings.recoveries import Distill, Recovery
from stages.core.settings.trainings import Finetune
from stages.core.tasks.interface import Examples, Task
from stages.core.training.answers import Answers
from stages.core.training.loop import History, start_of, train
from stages.core.training.resuming import Unfinished


def recover(
    view: ModelView,
    sharing: Sharing,
    teacher: ModelView | None,
    task: Task,
    rows: Examples,
    held_out: Any,
    recipe: Finetune | FinetuneImages,
    spec: Recovery,
    seed: int,
    *,
    autocast: AbstractContextManager,
    watch: Callable[[Any], Any],
    unfinished: Path | None = None,
    kept: Sequence[int] | None = None,
    answers: Answers | None = None,
) -> History:
    """Train one model with one seed, in place: FFN by FFN on the first rows (`spec.warm_start`), then end to end.

    rows: the examples. held_out: what `task` scores to choose the best state. teacher: the model that is distilled
    from; None if `spec` distils nothing and has no warm start.
    unfinished: the folder for the state of a training that may be killed. kept: the teacher's layers that a model with
    fewer still has. answers: where the teacher's answers are kept.
    """
    set_dropout(view.model, recipe.dropout)
    penalty = frobenius(view.model, spec.around, spec.frobenius) if spec.frobenius else None

    def with_rates(groups: dict[str, list[nn.Parameter]]) -> list[tuple[list[nn.Parameter], float]]:
        highest = recipe.learning_rate
        return [(chosen, spec.rate * getattr(highest, name)) for name, chosen in groups.items() if chosen]

    def validate() -> float:
        # Outside `autocast`: every evaluation is float32.
        return task.score(view.model, held_out)

    def state(phase: str) -> Unfinished | None:
        return Unfinished(unfinished / phase) if unfinished else None

    early, start = min(round(spec.warm_start * len(rows)), len(rows) - 1), None
    rates = with_rates(parts(view, sharing.groups, spec.train))
    if early:
        start = start_of(view.model, rates, validate, early * recipe.epochs)
        layers = [layer for group in sharing.groups for layer in group]
        # FFN by FFN, norms get no gradient. If only deltas are trained end to end, only deltas are trained here.
        window = parts(view, sharing.groups, "deltas" if spec.train == "deltas" else "window")
        train(
            view.model,
            early,
            layer_by_layer(task, view, rows[:early], teacher, layers),
            with_rates({name: window[name] for name in ("deltas", "base") if name in window}),
            recipe,
            seed,
            autocast=autocast,
            watch=watch,
            unfinished=state("warm_start"),
        )
    return train(
        view.model,
        len(rows) - early,
        end_to_end(
            task,
            view.model,
            rows[early:],
            teacher and teacher.model,
            spec.distill,
            penalty,
            kept,
            answers and answers.to,
        ),
        rates,
        recipe,
        seed,
        validate=validate,
        start=start,
        times=recipe.validation.times,
        autocast=autocast,
        watch=watch,
        unfinished=state("end_to_end"),
    )


# Attributes of modules that apply dropout themselves; the last two drop whole blocks (stochastic depth).
DROPOUTS = (
    "attention_dropout",
    "embedding_dropout",
    "hidden_dropout",
    "residual_dropout",
    "dropout",
    "drop_prob",
    "layerdrop",
)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of a model this probability in training; its config does not change.

    GPT-2's config says 0.1. A model in training then differs from itself by a fifth, which is noise for a teacher.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in _dropouts(module):
            setattr(module, name, probability)
        config = getattr(module, "config", None)
        if not isinstance(module, PreTrainedModel) and any(
            getattr(config, name) != probability for name in _dropouts(config)
        ):
            # Falcon's blocks ask their config: they get one of their own.
            module.config = copy.copy(config)
            for name in _dropouts(config):
                setattr(module.config, name, probability)


def _dropouts(holder: Any) -> list[str]:
    """The attributes of a module or config that say how much is dropped."""
    return [name for name in DROPOUTS if isinstance(getattr(holder, name, None), float | int)]


def parts(view: ModelView, groups: list[list[int]], what: str) -> dict[str, list[nn.Parameter]]:
    """The name of a learning rate -> the parameters that `what` trains with it; no parameter comes twice.

    `all`: {all}. `deltas`: {deltas}. `window`: {deltas, base, norms}, where `base` is every matrix that the FFNs of a
    group share and `norms` every vector of their blocks (norms and biases).
    """
    if what == "all":
        return {"all": list(view.model.parameters())}
    factors = [p for delta in structure.deltas(view.model) for p in (delta.A, delta.B)]
    if what == "deltas":
        return {"deltas": factors}
    layers, of_deltas = [layer for group in groups for layer in group], {id(p) for p in factors}
    shared = {id(p): p for layer in layers for p in view.parameters(layer) if id(p) not in of_deltas}
    vectors = {id(p): p for layer in layers for p in view.blocks[layer].parameters() if p.ndim < 2}
    return {
        "deltas": factors,
        "base": [p for p in shared.values() if p.ndim >= 2],
        "norms": list(vectors.values()),
    }


def frobenius(model: Any, around: str, strength: float = 1.0) -> Callable[[], Tensor]:
    """A function that gives strength * sum ||A B||_F^2 over all deltas as they are when it is called.

    With `around` = start it is strength * sum ||A B - A_0 B_0||_F^2, where A_0 B_0 are the deltas of this moment. It is
    always computed in float32: bfloat16 would lose these small differences.
    """
    device, deltas = next(model.parameters()).device, list(structure.deltas(model))
    starts = [(delta.A.detach().clone(), delta.B.detach().clone()) for delta in deltas]

    def penalty() -> Tensor:
        with torch.autocast(device.type, enabled=False):
            total = sum(delta.squared_norm() for delta in deltas)
            if around == "start":
                for delta, (a, b) in zip(deltas, starts):
                    total = total - 2 * ((delta.A.T @ a) * (delta.B @ b.T)).sum() + ((a.T @ a) * (b @ b.T)).sum()
            return strength * total

    return penalty


def end_to_end(
    task: Task,
    model: Any,
    rows: Examples,
    teacher: Any | None,
    distill: Distill | None,
    penalty: Callable[[], Tensor] | None,
    kept: Sequence[int] | None = None,
    answers: Callable[..., Any] | None = None,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An objective for `train`: the loss on `rows`, and that loss with distillation and `penalty`.

    The minimised loss is (1 - logits) loss + logits T^2 KL(teacher || model) + hidden * relative error of the hidden
    states + penalty, by the weights of `distill` (Hinton et al. 2015, arXiv:1503.02531, for the logits). answers: of
    `Answers.to`, without which the teacher is asked.
    """
    hidden = distill is not None and distill.hidden > 0
    device = next(model.parameters()).device

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        examples = rows[batch].to(device)
        outputs = task.outputs(model, examples, hidden)
        loss = minimised = task.loss(outputs, examples)
        if distill is not None:
            with torch.no_grad():
                ask = partial(task.outputs, teacher, examples, hidden)
                targets = answers(task.inputs(examples), hidden, ask=ask) if answers else ask()
            minimised = (1 - distill.logits) * loss
            if distill.logits:
                minimised = minimised + distill.logits * divergence(outputs.logits, targets.logits, distill.temperature)
            if hidden:
                # Of a model with stages there is one tensor for each stage, whatever layers it has.
                same = len(outputs.hidden_states) == len(targets.hidden_states)
                matching = targets.hidden_states if same else of_kept(targets.hidden_states, kept)
                pairs = zip(outputs.hidden_states[1:], matching[1:])
                minimised = minimised + distill.hidden * torch.stack([relative_error(*pair) for pair in pairs]).mean()
        return loss, minimised if penalty is None else minimised + penalty()

    return objective


def of_kept(states: Sequence[Tensor], kept: Sequence[int] | None) -> list[Tensor]:
    """The teacher's hidden states that a model of its layers `kept` should have: what each of them reads, and the last.

    states: what the first layer reads, what each next one reads, and the end. So a layer learns what is to be read by
    the one that now follows it, and makes up for those that are gone in between. None: all layers are there.
    """
    return list(states) if kept is None else [*(states[layer] for layer in kept), states[-1]]


def layer_by_layer(
    task: Task, view: ModelView, rows: Examples, teacher: ModelView, layers: list[int]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An objective for `train`: the mean relative error of the FFNs of `layers`, each on its teacher's own inputs."""

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), record_blocks(teacher, layers) as records:
            teacher.run(task.inputs(rows[batch].to(view.device)))
        pairs = {layer: record["ffn"] for layer, record in records.items()}
        error = torch.stack([relative_error(view.compute(layer, x), y) for layer, (x, y) in pairs.items()]).mean()
        return error, error

    return objective


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)) in nats, the mean over all positions.

    Both logits have shape (..., classes), such as (n, length, vocabulary) or (n, labels).
    """
    student = nn.functional.log_softmax(logits.flatten(0, -2).float() / temperature, -1)
    teacher = nn.functional.log_softmax(target.flatten(0, -2).float() / temperature, -1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def relative_error(found: Tensor, target: Tensor) -> Tensor:
    """The mean over tokens of |found - target|^2 / |target|^2, (..., d) both, so that every token counts the same.

    A token whose target is zero, as for an identity block, has no error.
    """
    found, target = found.float(), target.float()
    size = target.square().sum(-1)
    return torch.where(size > 0, (found - target).square().sum(-1) / size.clamp_min(1e-6), 0.0).mean()
