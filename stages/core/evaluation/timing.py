"""How long a model takes to read a prompt and to write after it.

Both models of a comparison run in the same process and take turns, so that whatever slows the machine slows
both. Every run writes exactly the asked number of tokens, one forward pass each: nothing stops early.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def waiting(device: torch.device) -> Callable[[], None]:
    """What waits until `device` has done all it was asked: a CUDA device answers before it has."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


@torch.no_grad()
def once(model: Any, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt (int64, shape (1, length)) and seconds per token after it, greedy, with a KV cache."""
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
    """Medians and interquartile ranges of each model's times, turn by turn.

    Name -> {prefill_ms, prefill_iqr_ms, decode_ms_per_token, decode_iqr_ms_per_token}.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in watch(range(warmup + repeats)):
        for name, model in models.items():
            measured = once(model, prompt, new_tokens)
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
