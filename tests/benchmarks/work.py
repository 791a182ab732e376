"""The pieces of work that are measured, each by the project's own functions."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.architecture import ffn
from stages.core.architecture.windows import contiguous, layers
from stages.core.calibration import alignment, statistics
from stages.core.calibration.correlation import correlations, standardised
from stages.core.calibration.moments import Moments, MomentStream
from stages.core.process import devices
from stages.core.settings.surgeries import Share
from stages.core.settings.trainings import Schedule
from stages.core.settings.windows import Best
from stages.core.shrinking import merging, operations, window_search
from stages.core.tasks.language import Language
from stages.core.training import loop, recovery
from tests.benchmarks import shapes


def weights(layers: int, width: int = 768, hidden: int = 3072) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    return [
        {"w_in": draw(hidden, width), "b_in": draw(hidden), "w_out": draw(width, hidden), "b_out": draw(width)}
        for _ in range(layers)
    ]


def align_window(seen: list[list[Tensor]], own: list[dict[str, Tensor]]) -> tuple[list[np.ndarray], dict]:
    """As `peer.merge_window`: permutations to the first layer, and the mean of the aligned FFNs."""
    known = [standardised(torch.cat(list(rows)))[0] for rows in zip(*seen)]
    window = list(range(len(known)))
    found = alignment.by_correlation(lambda m, other: correlations(known[m], known[other]).numpy(), [window], ["first"])
    orders = found["first"][0]
    aligned = [own[0], *(ffn.permute(own[layer], torch.from_numpy(orders[layer])) for layer in window[1:])]
    return [orders[layer] for layer in window[1:]], {
        name: merging.mean([part[name] for part in aligned], []) for name in own[0]
    }


def moments(width: int, seed: int, rows: int = 4000) -> Moments:
    stream = MomentStream()
    stream.update(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))
    return stream.moments()


def one_pair(rows: list[Tensor]) -> np.ndarray:
    stream = MomentStream()
    stream.update(rows[0])
    stream.moments()
    del stream
    known = [standardised(part)[0] for part in rows]
    return alignment.match(correlations(*known).numpy())


def spec(tokens: int = shapes.TOKENS) -> SimpleNamespace:
    return SimpleNamespace(max_tokens=tokens, moment_tokens=tokens, sites=["pre_activation", "post_activation"])


def tuning(what: str, steps: int = 4, length: int = 512) -> Callable[[], Any]:
    """A training of GPT-2's shape, four layers of which share at rank 8: `all` weights, or only the `deltas`."""
    devices.start(SimpleNamespace(threads=None, device="cpu"))
    view = shapes.gpt2()
    share = Share(method="share", alignment="identity", base="mean", delta="zero", rank=8)
    calibration = statistics.Calibration(None, lambda layer: {"input": None, "hidden": None}, None)
    group = [6, 7, 8, 9]
    shared, _ = operations.share(view, [group], calibration, share)
    del view
    rows = shapes.text(shared, steps, length)
    objective = recovery.end_to_end(Language(length, length), shared.model, rows, None, None, None)
    recipe = Schedule(epochs=1, batch_size=1)
    parts = [(chosen, 1e-5) for chosen in recovery.parts(shared, [group], what).values()]
    return lambda: loop.train(shared.model, steps, objective, parts, recipe, 0)


def search(folder: Any, view: Any, size: int, cached: bool, tokens: int = 2048, first: int = 0) -> list[float]:
    """The perplexities of all windows from layer `first` on, by the search, or (`cached` false) of each whole model."""
    task, text = Language(256, 256, 4), shapes.text(view, 1, tokens)[0]
    score = lambda changed: task.score(changed.model, text)  # noqa: E731
    share = Share(method="share", alignment="identity", delta="joint", rank=8)
    calibration = statistics.Calibration(None, lambda layer: statistics.read_moments(folder, layer), None)
    if cached:
        calibration.moments = cache(calibration.moments)
        found = window_search.search(
            view, calibration, share, Best(choose="best", sizes=[size], exclude_layers=list(range(first))), score
        )
        return [layout.perplexity for layout in found.scored]
    windows = contiguous(view.depth, [size], range(first))
    return [score(operations.operate(view, [layers(window)], calibration, share)[0]) for window in windows]


def decode(model: Any, tokens: int = 16) -> None:
    """Greedy decoding of one sequence after a prompt of 64 tokens."""
    ids = torch.arange(64)[None]
    with torch.no_grad():
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
