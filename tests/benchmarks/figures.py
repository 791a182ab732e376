"""The groups of figures, in the order in which they are measured."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stages import extract as extraction
from stages.core.architecture.depth import keep_layers
from stages.core.calibration import alignment
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import MomentStream, to_tensors
from stages.core.calibration.statistics import Calibration
from stages.core.forms.dense import to_dense
from stages.core.process.artifacts import write_tensors
from stages.core.settings.surgeries import Share
from stages.core.shrinking import fitting, operations
from tests.benchmarks import peer, shapes, work
from tests.benchmarks.measuring import Figure, alternate, peak, seconds

REACH = 10


def limit(_: Path) -> Iterator[Figure]:
    """The sustained rate of float32 products, beside float64's."""
    size = 3072
    pairs = [torch.randn(size, size, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    work_of = lambda m: lambda: [m @ m for _ in range(3)]  # noqa: E731
    times = alternate(*map(work_of, pairs))
    rates = [[3 * 2e-9 * size**3 / t for t in each] for each in times]
    yield Figure("products", *rates, "float64", f"{size} x {size}", faster=False, unit="GFLOP/s")


def extract(folder: Path) -> Iterator[Figure]:
    """Activations as parquet and all moments, against a bare forward pass over the same tokens."""
    for name, view in (("gpt2", shapes.gpt2()), ("smollm2", shapes.smollm2()), ("small", shapes.small())):
        length = min(1000, view.shape.positions) // 250 * 250
        text = shapes.batches(view, length=length)

        def bare(view=view, text=text):
            with torch.no_grad():
                for batch in text:
                    view.run(batch)

        def ours(view=view, text=text):
            extraction.gather(view, text, work.spec(), folder)

        times = alternate(ours, bare, rounds=2)
        yield Figure(f"extract_{name}", *times, "bare forward", "4,000 tokens", "<= 1.6", faster=False)


def correlate(_: Path) -> Iterator[Figure]:
    """A window of four against np.corrcoef, and against the machine's rate."""
    seen = shapes.activations(4)
    rows = [torch.cat(list(layer)) for layer in zip(*seen)]
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]

    def ours():
        known = [standardised(layer)[0] for layer in rows]
        return [correlations(known[i], known[j]) for i, j in pairs]

    plain = [layer.numpy() for layer in rows]
    times = [], []
    for _ in range(2):
        times[0].append(seconds(ours))
        times[1].append(seconds(lambda: peer.correlations(plain)))
    yield Figure("correlate_window", *times, "np.corrcoef", f"4 layers of {shapes.GPT2}", ">= 8")
    one, other = rows[0].T.contiguous(), rows[1]
    times = alternate(ours, lambda: [one @ other for _ in pairs])
    share = {"ratio is": "of the machine's float32 rate"}
    yield Figure("correlate_rate", *times, "six bare products", shapes.GPT2, ">= 0.7", beside=share)


def align(_: Path) -> Iterator[Figure]:
    """What the alignment of one window adds to a forward pass, against the peer: time, memory, permutations."""
    seen, own = shapes.activations(4), work.weights(4)
    found = {}

    def way(name: str, function: Callable) -> Callable[[], None]:
        return lambda: found.update({name: function(seen, own)})

    times = alternate(way("ours", work.align_window), way("peer", peer.merge_window), rounds=2)
    equal = np.mean([np.array_equal(a, b) for a, b in zip(found["ours"][0], found["peer"][0])])
    shape = f"4 layers of {shapes.GPT2}"
    yield Figure("align_window", *times, "peer", shape, ">= 3", beside={"equal permutations": f"{equal:.0%}"})
    peaks = [[peak(f"align_{name}")["peak"] / 1e6] for name in ("ours", "peer")]
    yield Figure("align_memory", *peaks, "peer", shape, "<= 0.25", faster=False, unit="MB")


def align_all(_: Path) -> Iterator[Figure]:
    """All pairs within a reach of ten, by cost to the centre, against a minute."""
    ffns = work.weights(12)
    moments = {"input": work.moments(768, 0), "hidden": work.moments(3072, 1)}
    windows = [list(range(first, min(first + REACH, 12))) for first in range(11)]
    taken = seconds(lambda: alignment.by_cost(ffns.__getitem__, lambda _: moments, windows, ["centre"]))
    yield Figure("align_all", [taken], [60], "wanted", "63 pairs of GPT-2 small's shape", ">= 1")


def fit(_: Path) -> Iterator[Figure]:
    """The joint fit of a window of four at rank 8, both matrices, against twenty seconds."""
    layers = [{name: value.double() for name, value in own.items()} for own in work.weights(4)]
    known = {"w_in": [work.moments(768, i) for i in range(4)], "w_out": [work.moments(3072, i) for i in range(4)]}

    def ours():
        for name, moments in known.items():
            fitting.joint([own[name] for own in layers], [type(m)(m.mean, m.second) for m in moments], [8] * 4)

    yield Figure("fit_joint", [seconds(ours)], [20], "wanted", "4 layers of GPT-2 small's shape, rank 8", ">= 1")


def search(folder: Path) -> Iterator[Figure]:
    """A search for a window of four against scoring every changed model whole, without what a search keeps.

    Of GPT-2's shape two windows are searched: one takes half a minute of a core.
    """
    for name, view, wide, first in (("small", shapes.small(), 2048, 0), ("gpt2", shapes.gpt2(), 1024, 7)):
        gathered = extraction.gather(view, shapes.batches(view, length=250), work.spec(), folder)
        for layer, streams in enumerate(gathered):
            known = to_tensors({site: stream.moments() for site, stream in streams.items()})
            write_tensors(folder / f"layer_{layer:02d}.safetensors", known)
        found = {}

        def way(what: str, cached: bool, view=view, wide=wide, first=first, found=found):
            return lambda: found.update({what: work.search(folder, view, 4, cached, wide, first)})

        times = [seconds(way("ours", True))], [seconds(way("plain", False))]
        apart = max(abs(a / b - 1) for a, b in zip(found["ours"], found["plain"]))
        shape = f"{name}, {9 - first} windows of four at rank 8, {wide:,} tokens"
        yield Figure(f"search_{name}", *times, "every model whole", shape, ">= 3", beside={"apart": f"{apart:.0e}"})


def decode(_: Path) -> Iterator[Figure]:
    """Decoding: a dense export and the shared form against the original, a shallower model against its depth."""
    view = shapes.gpt2()
    share = Share(method="share", alignment="identity", base="mean", delta="zero", rank=8)
    calibration = Calibration(None, lambda layer: {"input": None, "hidden": None}, None)
    shared = operations.operate(view, [[4, 5, 6, 7]], calibration, share)[0]
    original, shape = partial(work.decode, view.model), "GPT-2 small's shape, 16 tokens after 64"
    rows = (("dense", to_dense(shared), "<= 1.02"), ("shared", shared.model, "<= 1.05"))
    for name, model, target in rows:
        times = alternate(partial(work.decode, model), original, rounds=5)
        yield Figure(f"decode_{name}", *times, "original", shape, target, faster=False)
    # The bound: what a layer costs, by models of 12 layers and of 1, times the layers that are left.
    few, one = (keep_layers(view, list(range(count))).model for count in (3, 1))
    times = alternate(partial(work.decode, few), original, rounds=5)
    single = alternate(partial(work.decode, one), original, rounds=5)[0]
    rest = [lone + (whole - lone) * 2 / 11 for lone, whole in zip(single, times[1])]
    yield Figure("decode_compressed_4", times[0], rest, "bound of 3 layers", shape, ">= 0.9")


def tune(_: Path) -> Iterator[Figure]:
    """Training the deltas of one window against training all weights: time and memory, each in its own process."""
    runs = {what: [] for what in ("deltas", "all")}
    for what in [*runs, *runs]:  # by turns
        runs[what].append(peak(f"tune_{what}"))
    shape = "GPT-2 small's shape, 4 steps of 512 tokens, layers 6 to 9 at rank 8"
    times = [[run["seconds"] for run in each] for each in runs.values()]
    yield Figure("tune_deltas", *times, "all weights", shape, ">= 1.5")
    peaks = [[run["whole"] / 1e6 for run in each] for each in runs.values()]
    yield Figure("tune_memory", *peaks, "all weights", shape, "<= 0.6", faster=False, unit="MB")


def wide(_: Path) -> Iterator[Figure]:
    """One pair of layers of 14,336 neurons: moments, correlations and an assignment, within 8 GiB."""
    found = peak("wide")
    took = {"took": f"{found['seconds']:.0f} s"}
    whole = [found["whole"] / 2**30]
    yield Figure("wide_memory", whole, [8], "limit", "d_ff 14,336, 4,000 tokens", "<= 1", False, "GiB", took)


def growth(_: Path) -> Iterator[Figure]:
    """What twice the tokens, width or depth cost."""
    usual = {"tokens": 2048, "width": 1024, "layers": 2}
    for what in usual:
        rows = {}
        for name, sizes in (("usual", usual), ("twice", usual | {what: 2 * usual[what]})):
            rows[name] = [torch.randn(sizes["tokens"], sizes["width"]) for _ in range(sizes["layers"])]

        def gather(layers):
            for layer in layers:
                MomentStream().update(layer)

        def correlate(layers):
            known = [standardised(layer)[0] for layer in layers]
            for one, other in zip(known, known[1:]):
                correlations(one, other)

        for cost, function in (("moments", gather), ("correlations", correlate)):
            times = alternate(lambda: function(rows["twice"]), lambda: function(rows["usual"]))
            shape = "2,048 tokens, 1,024 neurons, 2 layers"
            yield Figure(f"growth_{cost}_{what}", *times, "once", shape, faster=False)


FIGURES: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "limit": limit, "extract": extract, "correlate": correlate, "align_window": align, "align_all": align_all,
    "fit": fit, "search": search, "decode": decode, "tune": tune, "wide": wide, "growth": growth,
}  # fmt: skip
