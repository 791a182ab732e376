"""How much each rank of a delta takes away from the error of the matrices that share a base.

Errors are relative, E|(W_l - W_c) x|^2 / E|W_l x|^2, so that matrices whose outputs have other units can be compared.
Where the base moves with the deltas, one rank changes what another is worth. Then the gains are those of a greedy path.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.core.architecture import windows
from stages.core.architecture.view import ModelView
from stages.core.architecture.windows import Window
from stages.core.calibration.moments import SITE, Moments, cholesky, root
from stages.core.calibration.statistics import Calibration
from stages.core.settings.surgeries import Share
from stages.core.shrinking import budgets
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.joint import parallel
from stages.core.shrinking.members import aligned, fit_role

LEAST = 1e-4  # of the largest gain: the path to smaller ones is not followed


class WindowGains(dict[Window, dict[Matrix, Tensor]]):
    """Window -> `gains` of its layers, computed where they are first asked for. known: those of an earlier one."""

    def __init__(
        self, view: ModelView, calibration: Calibration, spec: Share, known: Mapping[Window, dict[Matrix, Tensor]] = {}
    ):
        super().__init__(known)
        self.view, self.calibration, self.spec = view, calibration, spec

    def __missing__(self, window: Window) -> dict[Matrix, Tensor]:
        self[window] = gains(self.view, windows.layers(window), self.calibration, self.spec)
        return self[window]


@torch.no_grad()
def gains(view: ModelView, group: list[int], calibration: Calibration, spec: Share) -> dict[Matrix, Tensor]:
    """(layer, role) -> the relative error that each further rank takes away: float64, falling.

    As many as the matrix has ranks, or, with `gains: moving_base`, as have a share in the gains of the group.
    """
    found = {}
    members = aligned(view, group, calibration, spec)
    for role in view.roles:
        corrected = spec.bias_correction and f"b_{role}" in members[0].ffn
        if spec.gains == "moving_base":
            weights = [member.ffn[f"w_{role}"] for member in members]
            moments = [member.moments[SITE[role]] for member in members]
            taken = moving(weights, [m.centred() for m in moments] if corrected else moments)
            found |= {(layer, role): values for layer, values in zip(group, taken)}
            continue
        centre = fit_role(members, role, spec.base, "none", [0] * len(members), centred=corrected).base
        for layer, member in zip(group, members):
            moments = member.moments[SITE[role]]
            weight, root = member.ffn[f"w_{role}"], (moments.centred() if corrected else moments).root
            found[layer, role] = budgets.gains(weight @ root, (weight - centre) @ root)
    return found


def moving(weights: list[Tensor], moments: list[Moments]) -> list[Tensor]:
    """For each layer what its further ranks take away where the base is solved for, as a share of the mean E|W_l x|^2.

    Two layers: the error left after ranks r_0 + r_1 is the sum of the squared singular values of (W_0 - W_1) P^(1/2)
    from the next one on, P = C_0 (C_0 + C_1)^-1 C_1, whichever layer has the ranks; they take turns. More layers: a
    falling price; at each, every layer in turn takes all ranks that are worth it, given the others' deltas. What is
    left is then no more than the gains say.
    """
    whole = sum((w @ m.root).square().sum() for w, m in zip(weights, moments)) / len(weights)
    if not whole > budgets.NOTHING:
        return [weights[0].new_zeros(0)] * len(weights)
    weights = [weight / whole.sqrt() for weight in weights]
    if len(weights) == 2:
        metric = _eliminated(moments)[2][0]
        taken = _spectrum((weights[0] - weights[1]) @ root(metric.ridged()))[0]
        return [taken[::2], taken[1::2]]
    return [torch.tensor(taken, dtype=torch.float64) for taken in _path(weights, moments)]


def _eliminated(moments: list[Moments]) -> tuple[list[Tensor], list[Tensor], list[Moments]]:
    """For each layer what a fit needs whose base is solved for: C_l, a Cholesky factor of C_o, the sum of the others',
    and the metric C_l (C_l + C_o)^-1 C_o (see stages.core.shrinking.joint).
    """
    grams = [m.ridged() for m in moments]
    whole = cholesky(sum(grams))
    others = [sum(gram for other, gram in enumerate(grams) if other != layer) for layer in range(len(grams))]
    metrics = [Moments(m.mean, parallel(gram, other, whole)) for m, gram, other in zip(moments, grams, others)]
    return grams, [cholesky(other) for other in others], metrics


def _path(weights: list[Tensor], moments: list[Moments]) -> list[list[float]]:
    """The gains of three layers or more, each layer's falling, down to LEAST of the largest.

    With the base solved for, layer l leaves R_l = W_l - Y_l C_o^-1, Y_l the sum of what the others' deltas leave, each
    times its C. What multiplies Y_l is found once, in float64; the path itself is in float32, whose rounding is a
    hundredth of LEAST.
    """
    grams, factors, metrics = _eliminated(moments)
    metric_roots = [root(metric.ridged()) for metric in metrics]
    own = [(weight @ gram).float() for weight, gram in zip(weights, grams)]
    weighted = [(weight @ half).float() for weight, half in zip(weights, metric_roots)]
    to_metric = [torch.cholesky_solve(half, factor).float() for half, factor in zip(metric_roots, factors)]
    to_gram = [torch.cholesky_solve(gram, factor).float() for gram, factor in zip(grams, factors)]
    rest = list(own)  # (W_l - A_l B_l) C_l
    found: list[list[float]] = [[] for _ in weights]

    def spectrum(layer: int) -> tuple[Tensor, Tensor, Tensor]:
        others = sum(product for other, product in enumerate(rest) if other != layer)
        return others, *_spectrum(weighted[layer] - others @ to_metric[layer])

    largest = max(spectrum(layer)[1][0].item() for layer in range(len(weights)))
    price = largest / 2
    while price > LEAST * largest:
        for layer, taken in enumerate(found):
            others, values, u = spectrum(layer)
            count = max(len(taken), int((values > price).sum()))
            taken += [min(value, 2 * price) for value in values[len(taken) : count].tolist()]
            u = u[:, :count]
            rest[layer] = own[layer] - u @ (u.T @ own[layer] - (u.T @ others) @ to_gram[layer])
        price /= 2
    return found


def _spectrum(reduced: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values of R C^(1/2), falling, and its left singular vectors where they are not 0."""
    if len(reduced) <= reduced.shape[1]:
        values, u = torch.linalg.eigh(reduced @ reduced.T)
    else:
        values, v = torch.linalg.eigh(reduced.T @ reduced)
        u = reduced @ v / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return values.flip(0).clamp_min(0), u.flip(1)
