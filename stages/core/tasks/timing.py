"""The latency of prefill (reading a prompt) and decoding (generating tokens after it), and of plain forward passes.

The models of a comparison run in turns in one process, so that a slow phase of the machine slows all of them. Every run
generates exactly the given number of tokens, one forward pass each.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def waiting(device: torch.device) -> Callable[[], None]:
    """A function that waits until `device` has finished; a CUDA call returns before its work is done."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else _do_nothing


def _do_nothing() -> None:
    """The wait for a device that is never behind."""


@torch.no_grad()
def once(model: Any, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt (int64, (1, length)), and seconds per generated token, greedy with a KV cache."""
    synchronise = waiting(prompt.device)
    synchronise()
    begin = time.perf_counter()
    state = model(prompt, use_cache=True)
    token = state.logits[:, -1:].argmax(-1)
    synchronise()
    middle = time.perf_counter()
    for _ in range(new_tokens):
        state = model(token, past_key_values=state.past_key_values, use_cache=True)
        token = state.logits[:, -1:].argmax(-1)
    synchronise()
    return middle - begin, (time.perf_counter() - middle) / new_tokens


def compare(models: dict[str, Any], prompt: Tensor, new_tokens: int, warmup: int, repeats: int, watch=iter) -> dict:
    """Name of each model -> medians and interquartile ranges of its times over `repeats` turns, in milliseconds.

    Every other turn runs the models in reverse, so that none always follows the same one.
    The times: prefill_ms, prefill_iqr_ms, decode_ms_per_token, decode_iqr_ms_per_token.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in watch(range(warmup + repeats)):
        for name in list(models) if turn % 2 == 0 else reversed(models):
            measured = once(models[name], prompt, new_tokens)
            if turn >= warmup:
                times[name].append(measured)
    return {name: _summary(rows) for name, rows in times.items()}


def _summary(rows: list[tuple[float, float]]) -> dict[str, float]:
    (prefill, prefill_iqr), (decode, decode_iqr) = ([1000 * x for x in _spread(column)] for column in zip(*rows))
    return {
        "prefill_ms": prefill,
        "prefill_iqr_ms": prefill_iqr,
        "decode_ms_per_token": decode,
        "decode_iqr_ms_per_token": decode_iqr,
    }


def _spread(values: tuple[float, ...]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), high - low


@torch.no_grad()
def passes(models: dict[str, Any], batch: Tensor, warmup: int, repeats: int, watch=iter) -> dict:
    """Name of each model -> median and interquartile range of a forward pass over `repeats` turns, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in models}
    synchronise = waiting(batch.device)
    for turn in watch(range(warmup + repeats)):
        for name, model in models.items():
            synchronise()
            begin = time.perf_counter()
            model(batch)
            synchronise()
            if turn >= warmup:
                times[name].append(1000 * (time.perf_counter() - begin))
    return {name: _spread(tuple(values)) for name, values in times.items()}
