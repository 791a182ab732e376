"""What a variant learns from after surgery: which of its parameters move, and towards what."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.core.architecture.depth import watching
from stages.core.architecture.families import Family, family_of
from stages.core.forms import structure
from stages.core.forms.structure import Sharing
from stages.core.settings.profiles import Finetune
from stages.core.settings.variants import Distill, Recovery
from stages.core.tasks.language import next_token_loss, perplexity
from stages.core.training.loop import History, train
from stages.core.training.resuming import Unfinished


def recover(
    model: Any,
    sharing: Sharing,
    teacher: Any,
    rows: Tensor,
    held_out: Tensor,
    recipe: Finetune,
    wanted: Recovery,
    seed: int,
    *,
    autocast: AbstractContextManager,
    watch: Callable[[Any], Any],
    unfinished: Path | None = None,
) -> History:
    """Train one variant with one seed, in place: FFN by FFN for a share of the rows, then end to end.

    rows: int64 (n, length); held_out: int64 (tokens,), on which the best state is chosen; `teacher` is the original,
    asked only by what `wanted` distils. What is unfinished is kept below the folder `unfinished`.
    """
    set_dropout(model, recipe.dropout)
    family = family_of(model.config.model_type)
    penalty = frobenius(model, wanted.around) if wanted.frobenius else None

    def paced(groups: dict[str, list[nn.Parameter]]) -> list[tuple[list[nn.Parameter], float]]:
        rates = recipe.learning_rate
        return [(chosen, wanted.rate * getattr(rates, name)) for name, chosen in groups.items() if chosen]

    def validate():
        # Outside `autocast`: every evaluation is float32.
        return perplexity(model, held_out, recipe.sequence_length, recipe.sequence_length, recipe.batch_size)

    def kept(phase):
        return Unfinished(unfinished / phase) if unfinished else None

    early = round(wanted.warm_start * len(rows))
    if early:
        layers = [layer for group in sharing.groups for layer in group]
        # FFN by FFN, norms see no gradient; where only deltas are to move, bases keep still here too.
        alone = parts(model, family, sharing.groups, "deltas" if wanted.train == "deltas" else "window")
        train(
            model,
            early,
            layer_by_layer(model, rows[:early], teacher, family, layers),
            paced({name: alone[name] for name in ("deltas", "base") if name in alone}),
            recipe,
            seed,
            autocast=autocast,
            watch=watch,
            unfinished=kept("warm_start"),
        )
    return train(
        model,
        len(rows) - early,
        end_to_end(
            model, rows[early:], teacher, wanted.distill, (lambda: wanted.frobenius * penalty()) if penalty else None
        ),
        paced(parts(model, family, sharing.groups, wanted.train)),
        recipe,
        seed,
        validate=validate,
        times=recipe.validation.times,
        autocast=autocast,
        watch=watch,
        unfinished=kept("end_to_end"),
    )


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout of a model in training this probability; its config stays as it is.

    GPT-2's config says 0.1: a model in training then differs from itself by a fifth, which is noise to a teacher.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        if hasattr(module, "attention_dropout"):  # where attention itself drops out
            module.attention_dropout = probability


def parts(model: Any, family: Family, groups: list[list[int]], what: str) -> dict[str, list[nn.Parameter]]:
    """The parameters that `what` trains, by the name of their learning rate.

    `all`: {all}. `deltas`: {deltas}. `window`: {deltas, base, norms}, where `base` is every matrix that the FFNs
    of a group share and `norms` every vector of their blocks (norms and biases). No parameter is named twice.
    """
    if what == "all":
        return {"all": list(model.parameters())}
    factors = [p for delta in structure.deltas(model) for p in (delta.A, delta.B)]
    if what == "deltas":
        return {"deltas": factors}
    blocks = [family.blocks(model)[layer] for group in groups for layer in group]
    known = {id(p) for p in factors}
    shared = {id(p): p for block in blocks for p in getattr(block, family.ffn).parameters() if id(p) not in known}
    vectors = {id(p): p for block in blocks for p in block.parameters() if p.ndim < 2}
    return {
        "deltas": factors,
        "base": [p for p in shared.values() if p.ndim >= 2],
        "norms": list(vectors.values()),
    }


def frobenius(model: Any, around: str) -> Callable[[], Tensor]:
    """sum ||A B||_F^2 over all deltas, or sum ||A B - A_0 B_0||_F^2 where `around` is start, as a function of now.

    Always in float32: the small differences of the second form are lost in bfloat16.
    """
    device, deltas = next(model.parameters()).device, list(structure.deltas(model))
    starts = [(delta.A.detach().clone(), delta.B.detach().clone()) for delta in deltas]

    def penalty() -> Tensor:
        with torch.autocast(device.type, enabled=False):
            total = sum(delta.squared_norm() for delta in deltas)
            if around == "start":
                for delta, (a, b) in zip(deltas, starts):
                    total = total - 2 * ((delta.A.T @ a) * (delta.B @ b.T)).sum() + ((a.T @ a) * (b @ b.T)).sum()
            return total

    return penalty


def end_to_end(
    model: Any, rows: Tensor, teacher: Any, distill: Distill | None, penalty: Callable[[], Tensor] | None
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Next-token loss on `rows` (int64, (n, length)), blended with what `distill` asks of `teacher`, plus `penalty`.

    The first value is the next-token loss alone. Hinton et al. 2015 (arXiv:1503.02531) for the logits.
    """
    hidden = distill is not None and distill.hidden > 0

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        ids = rows[batch].to(next(model.parameters()).device)
        state = model(ids, use_cache=False, output_hidden_states=hidden)
        loss = minimised = next_token_loss(state.logits, ids)
        if distill is not None:
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False, output_hidden_states=hidden)
            minimised = (1 - distill.logits) * loss
            if distill.logits:
                minimised = minimised + distill.logits * divergence(state.logits, wanted.logits, distill.temperature)
            if hidden:
                errors = [relative_error(s, t) for s, t in zip(state.hidden_states[1:], wanted.hidden_states[1:])]
                minimised = minimised + distill.hidden * torch.stack(errors).mean()
        return loss, minimised if penalty is None else minimised + penalty()

    return objective


def layer_by_layer(
    model: Any, rows: Tensor, teacher: Any, family: Family, layers: list[int]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The mean relative error of the FFNs of `layers` on the very inputs that the teacher's have on `rows`."""

    def objective(batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), watching(teacher, family, layers) as seen:
            teacher.base_model(rows[batch].to(next(model.parameters()).device), use_cache=False)
        errors = []
        for layer, here in seen.items():
            read, answered = here["ffn"]
            errors.append(relative_error(getattr(family.blocks(model)[layer], family.ffn)(read), answered))
        error = torch.stack(errors).mean()
        return error, error

    return objective


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(wanted / T) || softmax(logits / T)), the mean over all positions."""
    student = nn.functional.log_softmax(logits.flatten(0, 1).float() / temperature, -1)
    teacher = nn.functional.log_softmax(wanted.flatten(0, 1).float() / temperature, -1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean over tokens of ||found - wanted||^2 / ||wanted||^2: no token's size outweighs the others.

    A token of which nothing is wanted (an identity block answers 0) has no error.
    """
    found, wanted = found.float(), wanted.float()
    size = wanted.square().sum(-1)
    return torch.where(size > 0, (found - wanted).square().sum(-1) / size.clamp_min(1e-6), 0.0).mean()
