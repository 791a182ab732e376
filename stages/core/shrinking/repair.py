"""Repairs of merged FFNs by closed forms on calibration text.

`repair`, for a group that became one layer: the merged FFN is one block's, yet it must move the residual stream as far
as all blocks of the group did. It is fitted to the difference between the original's stream after the group and the
shallow model's stream before the FFN, so that it also makes up for the errors of earlier groups.

`refit`, for a group that shares one FFN: the merged `in` and `gate` matrices give hidden activations that no layer had,
and the merged output matrix was made for those that the layers had. It is fitted anew to the merged activations.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.core.architecture.depth import Walk, record_blocks
from stages.core.architecture.ffn import Ffn
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import Moments, MomentStream

# The weight of the penalty on the distance from the matrix before the fit. Without it, directions that calibration text
# hardly uses get entries a hundred times larger, from which no training at a usual rate recovers.
RIDGE = 1e-2


@torch.no_grad()
def repair(original: Walk, shallow: Walk, last: int, layer: int, how: str) -> None:
    """Fit the FFN of `layer` of the shallow model, in place, to the stream after layer `last` of the original.

    how: a name of REPAIRS. Both walks have the same text; afterwards they wait before these layers. Where the block
    scales its FFN's output, one factor is fitted after the scale, the output matrix before it.
    """
    if shallow.view.norm_after(layer) is not None:
        if how == "least_squares":
            _fit_before_norm(original, shallow, last, layer)
        _fit_norm(original, shallow, last, layer)
        return
    fitted, reads_hidden = REPAIRS[how]
    stream, scale = MomentStream(), shallow.view.scale(layer)
    for number in range(len(original.batches)):
        target, current = original.advance(number, last), shallow.advance(number, layer)
        output, missing = current["ffn"][1], target["block"][1] - current["block"][1]
        if scale is not None and reads_hidden:
            missing = before_scale(missing, scale)
        elif scale is not None:
            output = scale * output
        missing = missing + output
        stream.update(torch.cat([current["out"][0] if reads_hidden else output, missing], dim=1))
    old = shallow.view.read_double(layer)
    shallow.view.write(layer, {**old, **fitted(old, stream.moments())})


def before_scale(missing: Tensor, scale: Tensor) -> Tensor:
    """What an output matrix has to add for its block to add `missing` after the scale; 0 where the scale drops it."""
    return torch.where(scale == 0, 0.0, missing / torch.where(scale == 0, 1.0, scale))


def _fit_before_norm(original: Walk, shallow: Walk, last: int, layer: int) -> None:
    """Least squares where an RMS norm follows, whose output for y is g y / rms(y).

    The division by rms(y) is taken as it was before the fit: W is fitted to missing / g on a / rms(y).
    """
    view, stream = shallow.view, MomentStream()
    norm, old = view.norm_after(layer), view.read_double(layer)
    gain = norm(torch.ones_like(norm.weight))
    gain = torch.where(gain.abs() < 1e-6, torch.inf, gain)
    for number in range(len(original.batches)):
        target, current = original.advance(number, last), shallow.advance(number, layer)
        output, normed = current["norm"]
        size = output.pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-12)
        missing = target["block"][1] - current["block"][1] + normed
        bias = old["b_out"].to(output) if "b_out" in old else 0.0
        stream.update(torch.cat([current["out"][0] / size, missing / gain - bias / size], dim=1))
    without_bias = {name: tensor for name, tensor in old.items() if name != "b_out"}
    view.write(layer, {**old, **least_squares(without_bias, stream.moments())})


def _fit_norm(original: Walk, shallow: Walk, last: int, layer: int) -> None:
    """Multiply what the norm after the FFN gives by the number that minimises E|missing - s normed|^2.

    Whatever the output matrix is multiplied by, the norm divides by.
    """
    crossed = squared = 0.0
    for number in range(len(original.batches)):
        target, current = original.advance(number, last), shallow.advance(number, layer)
        normed = current["norm"][1].double()
        missing = (target["block"][1] - current["block"][1]).double() + normed
        crossed, squared = crossed + (missing * normed).sum().item(), squared + (normed**2).sum().item()
    if squared:
        shallow.view.scale_norm(layer, crossed / squared)


@torch.no_grad()
def refit(original: Walk, shared: ModelView, group: list[int], own_biases: bool) -> None:
    """Fit the output matrix that `group` shares, in place, to sum_l E|y_l - W a_l - b|^2 by least squares.

    y_l is the output of the original's FFN of layer l, a_l the hidden activations of the shared FFN on the same input.
    b is one bias for all, or each layer's own, and absent if the family has none. Every layer gets its input in the
    original model: its input in the shared model depends on the matrix that the fit changes. Afterwards the walk waits
    before the group's last layer.
    """
    old = shared.read_double(group[0])
    width, own = old["w_out"].shape[1], own_biases and "b_out" in old
    second, means = 0.0, []
    for layer in group:
        moments = answers(original, shared, layer)
        means.append(moments.mean)
        second = second + (moments.centred() if own else moments).second / len(group)
    mean = torch.stack(means).mean(0)
    fitted = least_squares(old, Moments(torch.zeros_like(mean) if own else mean, second))
    for layer, mean in zip(group, means):
        bias = {"b_out": mean[width:] - fitted["w_out"] @ mean[:width]} if own else {}
        shared.write(layer, {**shared.read(layer), **fitted, **bias})


def answers(original: Walk, shared: ModelView, layer: int) -> Moments:
    """The moments of (a, y) of a layer: a the hidden activations of its FFN in `shared`, y what the original answers.

    Both read the original's input. The walk then waits before the layer.
    """
    stream = MomentStream()
    for number in range(len(original.batches)):
        inputs, outputs = original.advance(number, layer)["ffn"]
        with record_blocks(shared, [layer]) as records:
            shared.compute(layer, inputs)
        stream.update(torch.cat([records[layer]["out"][0], outputs], dim=1))
    return stream.moments()


def scaled(old: Ffn, joint: Moments) -> dict[str, Tensor]:
    """Output matrix and bias times the number s that minimises E|t - s y|^2.

    joint: the moments of (y, t), the FFN's output and the missing part of the stream, (d_model,) each.
    """
    width = len(joint.mean) // 2
    second, crossed = joint.second[:width, :width], joint.second[width:, :width]
    factor = crossed.trace() / second.trace().clamp_min(torch.finfo(torch.float64).tiny)
    return {name: factor * old[name] for name in ("w_out", "b_out") if name in old}


def least_squares(old: Ffn, joint: Moments, ridge: float = RIDGE) -> dict[str, Tensor]:
    """The output matrix, and the bias where there is one, that minimise E|t - W a - b|^2 + ridge c |W - W_old|^2.

    joint: the moments of (a, t), the hidden activations (d_ff,) and the missing part of the stream (d_model,). c is the
    mean of E[a^2] over the neurons.
    """
    width = old["w_out"].shape[1]
    moments = joint.centred() if "b_out" in old else joint
    inputs, crossed = Moments(joint.mean[:width], moments.second[:width, :width]), moments.second[width:, :width]
    residual = crossed - old["w_out"] @ inputs.second
    weight = old["w_out"] + torch.cholesky_solve(residual.T, inputs.factor(ridge)).T
    if "b_out" not in old:
        return {"w_out": weight}
    return {"w_out": weight, "b_out": joint.mean[width:] - weight @ joint.mean[:width]}


# Name -> its fit, and whether that reads the hidden activations (or the FFN's output).
REPAIRS: dict[str, tuple[Callable[[Ffn, Moments], dict[str, Tensor]], bool]] = {
    "scale": (scaled, False),
    "least_squares": (least_squares, True),
}
