"""Matrices of a changed model, fitted again to the inputs that they get in that very model.

A form of a matrix is fitted to its inputs in the original. Where earlier layers have changed, other inputs come, and
what these layers do wrong is still in the residual stream. So one layer after the other is fitted again, to the
least-squares matrix W* = E[t x'] E[x' x']^-1 of what it reads and what it should answer.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.core.architecture.depth import Walk
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import Moments, MomentStream
from stages.core.forms.modeling_shared_ffn import FactoredLinear, MaskedLinear, SharedLinear
from stages.core.shrinking.lowrank import weighted, write
from stages.core.shrinking.options import Form, sparse
from stages.core.shrinking.repair import RIDGE, before_scale, least_squares


@torch.no_grad()
def refit(
    view: ModelView,
    changed: ModelView,
    kept: Sequence[int],
    shared: Collection[int],
    forms: Mapping[str, Mapping[str, Form]],
    batches: Sequence[Tensor],
) -> None:
    """Fit the output matrix of every layer of `changed`, in place, to what its residual stream lacks.

    x' are the hidden activations in `changed`, and t what the matrix has to add for the stream to be that of `view`
    after the layer; where a norm follows, t is what the matrix answers in `view`. W* then takes the form that the
    matrix has, fitted to the moments of x'. Of a shared FFN only the delta and the layer's own bias are fitted.

    kept: for each layer of `changed` its number in `view`. shared: the layers of groups. forms: layer, as JSON's string
    -> role -> form, for those of `changed` that are not dense. batches: calibration text.
    """
    original, own = Walk(view, batches), Walk(changed, batches)
    for layer, old in enumerate(kept):
        joint = wanted(original, own, old, layer)
        linear, form = changed.linears(layer)["out"], forms.get(str(layer), {}).get("out", {})
        _fit(changed, linear, form, joint, layer in shared)


def wanted(original: Walk, own: Walk, old: int, layer: int) -> Moments:
    """The moments of (x', t) of a layer. Both walks then wait before it."""
    stream, scale = MomentStream(), own.view.scale(layer)
    for number in range(len(original.batches)):
        theirs, ours = original.advance(number, old), own.advance(number, layer)
        if own.view.norm_after(layer) is not None:
            wanted = theirs["out"][1]
        else:
            missing = theirs["block"][1] - ours["block"][1]
            if scale is not None:
                missing = before_scale(missing, scale)
            wanted = ours["out"][1] + missing
        stream.update(torch.cat([ours["out"][0], wanted], dim=1))
    return stream.moments()


def _fit(changed: ModelView, linear: nn.Module, form: Form, joint: Moments, shared: bool) -> None:
    """Fit one matrix to the joint moments of (x', t), in the form that it has. `shared`: its base is not its own."""
    bias, now = _bias(linear), _matrix(changed, linear)
    width = now.shape[1]
    moments = joint.centred() if bias is not None else joint
    best = least_squares({"w_out": now} if bias is None else {"w_out": now, "b_out": bias}, joint)["w_out"]
    # What is not fitted is not moved where inputs hardly vary: the same ridge as in `best`.
    inputs = Moments(moments.mean[:width], moments.second[:width, :width])
    ridged = Moments(inputs.mean, inputs.ridged(RIDGE))
    if isinstance(linear, SharedLinear):
        base = changed.canonical(linear.base.weight).double()
        write(linear, weighted(best - base, linear.A.shape[1], ridged))
    elif isinstance(linear, MaskedLinear):
        linear.store(sparse(best, ridged, form["kept"], form["score"], refit=True).to(linear.values.dtype))
    elif isinstance(linear, FactoredLinear):
        if form["rank"]:
            write(linear, weighted(best, form["rank"], ridged))
    elif not shared:
        linear.weight.copy_(changed.canonical(best))
    if bias is not None:
        bias.copy_(joint.mean[width:] - _matrix(changed, linear) @ joint.mean[:width])


def _bias(linear: nn.Module) -> Tensor | None:
    return linear.base.bias if isinstance(linear, SharedLinear) else linear.bias


def _matrix(view: ModelView, linear: nn.Module) -> Tensor:
    """What a map multiplies by, (d_out, d_in), float64."""
    if isinstance(linear, SharedLinear):
        return view.canonical(linear.base.weight).double() + linear.delta().double()
    if isinstance(linear, FactoredLinear):
        return linear.delta().double()
    return (linear.matrix() if isinstance(linear, MaskedLinear) else view.canonical(linear.weight)).double()
