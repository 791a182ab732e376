"""What an FFN must answer once it stands for a whole group: closed forms on calibration text.

Of a group that becomes one layer: an average of n residual blocks moves the residual stream about 1/n as far as the n
blocks did. The layer's FFN is fitted to the difference between the stream that the original model has after the group,
and the one that the shallow model has before this FFN, so that what earlier groups have changed is made up for too.

Of a group that shares one FFN: hidden activations of the merged matrices are no layer's own, so that the merged output
matrix, which knows those only, reads what it was not made for. It is fitted anew to what it does read.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.depth import Walk, watching
from stages.core.calibration.moments import Moments, MomentStream

# How strongly least squares hold to the matrix as it was. Along directions that calibration text hardly uses they
# would else make entries a hundred times larger, from which no training of a usual rate recovers.
RIDGE = 1e-2


@torch.no_grad()
def repair(original: Walk, shallow: Walk, last: int, layer: int, how: str) -> None:
    """Fit the FFN of `layer` of the shallow model, in place, so that after it the stream is as after the original's
    `last`.

    `how` is a name of REPAIRS. Both walk with the same text, and stand before these layers afterwards.
    """
    fitted, reads_hidden = REPAIRS[how]
    stream = MomentStream()
    for number in range(len(original.batches)):
        wanted, here = original.on(number, last), shallow.on(number, layer)
        answer = here["ffn"][1]
        missing = wanted["block"][1] - here["block"][1] + answer
        stream.update(torch.cat([here["out"][0] if reads_hidden else answer, missing], dim=1))
    model, family = shallow.model, shallow.family
    old = {name: tensor.double() for name, tensor in ffn.read(model, family, layer).items()}
    ffn.write(model, family, layer, {**old, **fitted(old, stream.moments())})


@torch.no_grad()
def refit(original: Walk, shared: Any, group: list[int], own_biases: bool) -> None:
    """Fit the output matrix that `group` shares in `shared`, in place, to sum_l E|y_l - W a_l - b|^2 by least squares.

    y_l is what the original's FFN of layer l answers, a_l the hidden activations that the shared FFN has on the same
    input; b is one bias for all, or each layer's own, and absent where the family has none. The original stands before
    the group's last layer afterwards. Each layer reads what it read in the original: in the shared model's own stream
    it would read what an earlier state of the same matrix has left there, which the fit then changes.
    """
    family = original.family
    old = {name: tensor.double() for name, tensor in ffn.read(shared, family, group[0]).items()}
    width, apart = old["w_out"].shape[1], own_biases and "b_out" in old
    second, means = 0.0, []
    for layer in group:
        stream, alone = MomentStream(), getattr(family.blocks(shared)[layer], family.ffn)
        for number in range(len(original.batches)):
            read, answered = original.on(number, layer)["ffn"]
            with watching(shared, family, [layer]) as seen:
                alone(read)
            stream.update(torch.cat([seen[layer]["out"][0], answered], dim=1))
        moments = stream.moments()
        means.append(moments.mean)
        second = second + (moments.centred() if apart else moments).second / len(group)
    mean = torch.stack(means).mean(0)
    fitted = least_squares(old, Moments(torch.zeros_like(mean) if apart else mean, second))
    for layer, mean in zip(group, means):
        own = {"b_out": mean[width:] - fitted["w_out"] @ mean[:width]} if apart else {}
        ffn.write(shared, family, layer, {**ffn.read(shared, family, layer), **fitted, **own})


def scaled(old: dict[str, Tensor], joint: Moments) -> dict[str, Tensor]:
    """Output matrix and bias times the one number s that minimises E|t - s y|^2; `joint` are the moments of (y, t)."""
    width = len(joint.mean) // 2
    answered, crossed = joint.second[:width, :width], joint.second[width:, :width]
    factor = crossed.trace() / answered.trace().clamp_min(torch.finfo(torch.float64).tiny)
    return {name: factor * old[name] for name in ("w_out", "b_out") if name in old}


def least_squares(old: dict[str, Tensor], joint: Moments, ridge: float = RIDGE) -> dict[str, Tensor]:
    """The output matrix, and the bias where there is one, that minimise E|t - W a - b|^2 + ridge c |W - W_old|^2.

    `joint` are the moments of (a, t), the hidden activations (d_ff,) and what is missing (d_model,); c is the mean
    of E[a^2] over the neurons.
    """
    width = old["w_out"].shape[1]
    moments = joint.centred() if "b_out" in old else joint
    seen, crossed = Moments(joint.mean[:width], moments.second[:width, :width]), moments.second[width:, :width]
    left = crossed - old["w_out"] @ seen.second
    weight = old["w_out"] + torch.cholesky_solve(left.T, seen.factor(ridge)).T
    if "b_out" not in old:
        return {"w_out": weight}
    return {"w_out": weight, "b_out": joint.mean[width:] - weight @ joint.mean[:width]}


# Name -> its fit, and whether that reads the hidden activations (or the FFN's answer).
REPAIRS: dict[str, tuple[Callable[[dict[str, Tensor], Moments], dict[str, Tensor]], bool]] = {
    "scale": (scaled, False),
    "least_squares": (least_squares, True),
}
