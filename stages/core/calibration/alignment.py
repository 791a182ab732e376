"""Matching the neurons of layers, by the correlation of their activations or by the error of their weights.

The assignment maximises the summed correlation of activations, or minimises the summed error of weights (Hungarian
method, Kuhn 1955; for networks: Li et al. 2015, arXiv:1511.07543; Ainsworth et al. 2022, arXiv:2209.04836). The
reference is a group's first layer, or the running mean of the layers aligned so far (`centre`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.ffn import Ffn
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import SITE, Moments

REFERENCES = ("first", "centre")
# Reference -> the first layer of a window -> layer -> the permutation (int64, (d_ff,)) that aligns its neurons with
# those of the first layer, for all other layers of the window.
# Where neurons may change sign, a permutation has ~j for neuron j with the other sign.
Orders = dict[str, dict[int, dict[int, np.ndarray]]]


def match(correlation: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The permutation p (int64, (d_ff,)) that maximises the sum of correlation[k, p[k]], for a square matrix.

    `scale` times the entries are correlations. Rows and columns that are all zero (neurons that never vary) are matched
    with each other.
    """
    cost = np.multiply(correlation, -scale, dtype=np.float64)
    # More than any correlation, so that dead neurons pair up and take no live partner.
    cost[np.ix_(~cost.any(axis=1), ~cost.any(axis=0))] = -2.0
    return _assign(cost)


def by_correlation(
    between: Callable[[int, int], np.ndarray],
    windows: Sequence[list[int]],
    references: Iterable[str],
    watch: Callable[[Iterable], Iterable] = iter,
    note: Callable[[int, int, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> Orders:
    """The orders of every window by each reference, by correlations, each of which is read once.

    between(m, l): the correlations of layer m's neurons (rows) with layer l's, (d_ff, d_ff). With the reference
    `centre`, a neuron is matched by its mean correlation with the neurons that the aligned layers have in a position.
    Several assignments run at once, as many as torch has threads. note(m, l, correlations, order) is told, from any
    thread, of every match with a window's first layer m.
    """

    def solve(matrix: np.ndarray, first: int, layer: int) -> np.ndarray:
        order = match(matrix)
        note(first, layer, matrix, order)
        return order

    found: Orders = {reference: {layers[0]: {} for layers in windows} for reference in references}
    with _Assignments() as pool:
        for layer in watch(sorted({layer for layers in windows for layer in layers[1:]})):
            sums: dict[int, np.ndarray] = {}
            solved: dict[tuple[str, int], Future] = {}
            groups = [layers for layers in windows if layer in layers[1:]]
            for other in sorted({m for layers in groups for m in layers if m < layer}):
                matrix = between(other, layer)
                for layers in (layers for layers in groups if other in layers):
                    first = layers[0]
                    if other == first and ("first" in found or layer == layers[1]):
                        solved["first", first] = pool.submit(solve, matrix, first, layer)
                    if "centre" in found and layer != layers[1]:
                        if other == first:
                            sums[first] = matrix.copy()
                        else:
                            sums[first] += matrix[found["centre"][first][other]]
            for first, *others in (layers for layers in groups if layers[0] in sums):
                solved["centre", first] = pool.submit(match, sums.pop(first), 1 / (1 + others.index(layer)))
            _keep(found, solved, layer)
    return found


def _keep(found: Orders, solved: Mapping[tuple[str, int], Future], layer: int) -> None:
    """Write down a layer's orders. A window's second layer has one reference, the first layer, by either name."""
    for reference, orders in found.items():
        for first in orders:
            if future := solved.get((reference, first)) or solved.get(("first", first)):
                orders[first][layer] = future.result()


def by_cost(
    ffn_of: Callable[[int], Ffn],
    moments_of: Callable[[int], Mapping[str, Moments]],
    windows: Sequence[list[int]],
    references: Iterable[str],
    watch: Callable[[Iterable], Iterable] = iter,
    signs: bool = False,
) -> Orders:
    """The orders of every window as `by_correlation`, by the error of the reference's weights on the layer's inputs.

    ffn_of(layer): the canonical FFN. The reference `centre` is the mean FFN of the aligned layers. FFNs and moments are
    read once for each layer. signs: whether a neuron may also change its sign, which a gated FFN allows; then an order
    is a signed permutation (see `ffn.permute`).
    """
    found: Orders = {reference: {layers[0]: {} for layers in windows} for reference in references}
    firsts: dict[int, Ffn] = {}
    centres: dict[int, Ffn] = {}
    last = {layers[0]: layers[-1] for layers in windows}

    def solve(matrix: np.ndarray, costs: Costs, reference: Ffn) -> np.ndarray:
        order = _assign(matrix)
        return costs.signed(reference, order) if signs else order

    with _Assignments() as pool:
        for layer in watch(sorted({layer for layers in windows for layer in layers})):
            own, groups = ffn_of(layer), [layers for layers in windows if layer in layers[1:]]
            solved: dict[tuple[str, int], Future] = {}
            if groups:
                costs = Costs(own, moments_of(layer))
                for first, *others in groups:
                    wanted = {"first": firsts[first]} if "first" in found or layer == others[0] else {}
                    if "centre" in found and layer != others[0]:
                        wanted["centre"] = centres[first]
                    for name, reference in wanted.items():
                        matrix = costs.of(reference, signs).cpu().numpy()
                        solved[name, first] = pool.submit(solve, matrix, costs, reference)
            _keep(found, solved, layer)
            for first, orders in found.get("centre", {}).items():
                if layer in orders and layer < last[first]:
                    aligned = ffn.permute(own, torch.from_numpy(orders[layer]).to(own["w_in"].device))
                    centre, count = centres.get(first, firsts[first]), len(orders)
                    centres[first] = {name: v + (aligned[name] - v) / (count + 1) for name, v in centre.items()}
            firsts |= {layer: own} if layer in last else {}
            for first in [first for first in firsts if last[first] <= layer]:
                firsts.pop(first), centres.pop(first, None)
    return found


class Costs:
    """The errors of other FFNs in place of a layer's own; what does not depend on the other is computed once."""

    def __init__(self, own: Ffn, moments: Mapping[str, Moments]):
        self.own, self.terms = own, []
        for name, site in ((f"w_{role}", site) for role, site in SITE.items() if f"w_{role}" in own):
            weight, second = own[name].double(), moments[site].second
            if ffn.NEURON_AXIS[name] == 0:
                metric, weighed = second, weight @ second
                size = (weighed * weight).sum(1)
            else:
                metric = second.diagonal()
                weighed = weight * metric
                size = (weighed * weight).sum(0)
            if size.sum() > 0:
                self.terms.append((name, *((part / size.sum()).to(own[name]) for part in (metric, weighed, size))))

    def of(self, reference: Ffn, signs: bool = False) -> Tensor:
        """Entry (k, j): the error of the reference's neuron k in place of the layer's own neuron j, (d_ff, d_ff).

        For rows u_k, w_j of `in` and `gate` it is E|(u_k - w_j) x|^2 on the layer's own inputs x, for columns of `out`
        it is |u_k - w_j|^2 E[h_j^2]. Each is divided by E|W x|^2, so that the matrices can be summed. A matrix whose
        E|W x|^2 is 0, as in an identity block, adds nothing. It has the dtype of the FFNs.

        signs: of neuron j and its other self, whose rows of `in` and columns of `out` have the other sign, the entry is
        the smaller error: the overlap of `in` and `out` counts by its size.
        """
        total = self.own["w_in"].new_zeros(2 * [len(self.own["w_in"])])
        overlap = torch.zeros_like(total) if signs else total
        for name, metric, weighed, size in self.terms:
            other, into = reference[name], overlap if name in ffn.SIGNED else total
            if ffn.NEURON_AXIS[name] == 0:
                into.addmm_(other, weighed.T, alpha=-2)
                total += ((other @ metric) * other).sum(1)[:, None]
            else:
                into.addmm_(other.T, weighed, alpha=-2)
                total.addr_(other.square().sum(0), metric)
            total += size
        return total.sub_(overlap.abs_()) if signs else total

    def signed(self, reference: Ffn, order: np.ndarray) -> np.ndarray:
        """`order` with ~j (see `ffn.permute`) where the layer's neuron j costs less with the other sign."""
        where = torch.from_numpy(order).to(self.own["w_in"].device)
        overlap = self.own["w_in"].new_zeros(len(order))
        for name, _, weighed, _ in (term for term in self.terms if term[0] in ffn.SIGNED):
            axis = ffn.NEURON_AXIS[name]
            overlap += (reference[name] * weighed.index_select(axis, where)).sum(1 - axis)
        return np.where((overlap < 0).cpu().numpy(), ~order, order)


class _Assignments:
    """Assignments on as many threads as torch has: scipy releases Python's lock. Results do not depend on their number.

    Each thread holds a matrix of d_ff x d_ff in float64.
    """

    def __enter__(self) -> "_Assignments":
        workers = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(workers) if workers > 1 else None
        self.room = BoundedSemaphore(workers + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, solve: Callable[..., np.ndarray], *matrix: Any) -> Future:
        """The future result of solve(*matrix); waits while more matrices than threads are there."""
        if self.pool is None:
            future: Future = Future()
            future.set_result(solve(*matrix))
            return future
        self.room.acquire()
        future = self.pool.submit(solve, *matrix)
        future.add_done_callback(lambda _: self.room.release())
        return future


def _assign(cost: np.ndarray) -> np.ndarray:
    """The permutation p (int64) that minimises the sum of cost[k, p[k]]. `cost` may be overwritten."""
    from scipy.optimize import linear_sum_assignment

    # A permutation takes one entry of each row and column, so what all entries of a row or column have in common does
    # not change the optimum. Without it the method, which starts from dual variables of zero, is many times faster.
    cost = np.asarray(cost, np.float64)
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0, keepdims=True)
    return linear_sum_assignment(cost)[1].astype(np.int64)


def matched_correlation(correlation: np.ndarray, permutation: np.ndarray) -> float:
    """The mean correlation of the pairs (k, permutation[k])."""
    return float(correlation[np.arange(len(permutation)), permutation].mean(dtype=np.float64))


def null_correlation(rows: int, neurons: int, seed: int = 0) -> float:
    """The mean matched correlation of two layers of independent Gaussian neurons.

    Matching takes the best of many chance correlations. A match of as many `rows` (tokens) and `neurons` means
    something only by its excess over this value.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [standardised(torch.randn(rows, neurons, generator=generator))[0] for _ in range(2)]
    correlation = correlations(*drawn).numpy()
    return matched_correlation(correlation, match(correlation))
