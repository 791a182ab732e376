"""The latency of prefill (reading a prompt) and decoding (generating tokens after it), and of plain forward passes.

The models of a comparison run by turns in one process. Every run generates exactly the given number of tokens, one
forward pass each.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

BLOCK = 8  # tokens that one model generates before it is another's turn


def waiting(device: torch.device) -> Callable[[], None]:
    """A function that waits until `device` has finished; a CUDA call returns before its work is done."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else _do_nothing


def _do_nothing() -> None:
    """The wait for a device that is never behind."""


def generation(model: Any, prompt: Tensor, new_tokens: int) -> Iterator[float]:
    """Seconds for the prompt (int64, (1, length)), then for each BLOCK of generated tokens, greedy with a KV cache.

    Nothing runs between two of these figures.
    """
    synchronise = waiting(prompt.device)
    token, options = prompt, {}
    for size in [1, *blocks(new_tokens)]:
        with torch.no_grad():
            synchronise()
            begin = time.perf_counter()
            for _ in range(size):
                state = model(token, use_cache=True, **options)
                token, options = state.logits[:, -1:].argmax(-1), {"past_key_values": state.past_key_values}
            synchronise()
        yield time.perf_counter() - begin


def blocks(new_tokens: int) -> list[int]:
    """The sizes of the blocks of so many tokens."""
    return [min(BLOCK, new_tokens - begin) for begin in range(0, new_tokens, BLOCK)]


def turns(
    models: dict[str, Any], prompt: Tensor, new_tokens: int, warmup: int, repeats: int, watch=iter
) -> dict[str, list[tuple[float, float]]]:
    """Name of each model -> seconds for the prompt and per generated token in each of `repeats` turns.

    In a turn the models generate side by side, one block after the other, so that a slow phase of the machine slows all
    of them. Every other block runs them in reverse, and so does every other turn: none always follows the same one.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in watch(range(warmup + repeats)):
        running = {name: generation(model, prompt, new_tokens) for name, model in models.items()}
        found: dict[str, list[float]] = {name: [] for name in models}
        for block in range(1 + len(blocks(new_tokens))):
            for name in list(models) if (turn + block) % 2 == 0 else reversed(models):
                found[name].append(next(running[name]))
        if turn >= warmup:
            for name, (prefill, *decode) in found.items():
                times[name].append((prefill, sum(decode) / new_tokens))
    return times


def speedup(original: list[tuple[float, float]], variant: list[tuple[float, float]], new_tokens: int) -> float:
    """The median over turns of the original's time for the prompt and `new_tokens` over the variant's in that turn."""
    return ratio(*([prefill + new_tokens * decode for prefill, decode in rows] for rows in (original, variant)))


def ratio(original: list[float], variant: list[float]) -> float:
    """The median over turns of the original's time over the variant's in that turn."""
    return statistics.median(one / other for one, other in zip(original, variant, strict=True))


def summary(rows: list[tuple[float, float]]) -> dict[str, float]:
    """Medians and interquartile ranges of turns, in milliseconds.

    prefill_ms, prefill_iqr_ms, decode_ms_per_token, decode_iqr_ms_per_token.
    """
    (prefill, prefill_iqr), (decode, decode_iqr) = map(spread_ms, zip(*rows))
    return {
        "prefill_ms": prefill,
        "prefill_iqr_ms": prefill_iqr,
        "decode_ms_per_token": decode,
        "decode_iqr_ms_per_token": decode_iqr,
    }


def spread_ms(seconds: Iterable[float]) -> tuple[float, float]:
    """Median and interquartile range, in milliseconds."""
    values = [1000 * each for each in seconds]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, high - low


@torch.no_grad()
def passes(models: dict[str, Any], batch: Tensor, warmup: int, repeats: int, watch=iter) -> dict[str, list[float]]:
    """Name of each model -> seconds for a forward pass in each of `repeats` turns; every other one runs in reverse."""
    times: dict[str, list[float]] = {name: [] for name in models}
    synchronise = waiting(batch.device)
    for turn in watch(range(warmup + repeats)):
        for name in list(models) if turn % 2 == 0 else reversed(models):
            synchronise()
            begin = time.perf_counter()
            models[name](batch)
            synchronise()
            if turn >= warmup:
                times[name].append(time.perf_counter() - begin)
    return times
