"""Whether layers with one FFN decode faster since its weights stay in a cache: python tests/gpu/cached_weights.py

One token at a time goes through the matrices of GPT-2's shape (12 layers, d_model 768, d_ff 3,072, a head of 50,257
tokens) as a chain of matrix-vector products. Groups of n layers share one FFN. In order `blocks` the layers of a group
follow each other. In order `turns` the groups take turns (1 2 3 1 2 3): as many bytes are stored and read, but other
weights pass between two uses of an FFN. On CUDA a token is one graph, so that no launch is timed.
Options: --device cpu|cuda, --dtype float32|bfloat16, --threads N, --head no leaves the head out, --rounds N, --clock
core counts the seconds that the threads had of the cores (on a busy machine).
Prints the median milliseconds a token, the speed-up over no sharing, and the bytes that pass between two uses; writes
$OUT/cached_weights_DEVICE_DTYPE_head_HEAD.json (here, without $OUT).
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

LAYERS, WIDTH, HIDDEN, VOCABULARY = 12, 768, 3072, 50257
GROUPS = (1, 2, 3, 4, 6, 12)


def chain(group: int, order: str, head: bool, device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """The weights that a token passes, layer by layer; the layers of a group hold the same tensors."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype) / columns**0.5

    ffns = [(matrix(HIDDEN, WIDTH), matrix(WIDTH, HIDDEN)) for _ in range(LAYERS // group)]
    layers: list[tuple[Tensor, ...]] = []
    for layer in range(LAYERS):
        ffn = layer // group if order == "blocks" else layer % len(ffns)
        layers.append((matrix(3 * WIDTH, WIDTH), matrix(WIDTH, WIDTH), *ffns[ffn]))
    return [*layers, (matrix(VOCABULARY, WIDTH),)] if head else layers


def decode(x: Tensor, layers: list[tuple[Tensor, ...]]) -> Tensor:
    """One token through all matrices; attention over past tokens is left out, it reads no weights."""
    for weights in layers:
        if len(weights) == 1:
            return functional.linear(x, weights[0])
        qkv, proj, w_in, w_out = weights
        x = x + functional.linear(functional.linear(x, qkv)[:, :WIDTH], proj)
        x = x + functional.linear(functional.gelu(functional.linear(x, w_in), approximate="tanh"), w_out)
        x = functional.rms_norm(x, (WIDTH,))
    return x


def token(layers: list[tuple[Tensor, ...]], device: torch.device, dtype: torch.dtype):
    """A function that decodes one token: a CUDA graph, or the call itself."""
    x = torch.randn(1, WIDTH, device=device, dtype=dtype)
    if device.type != "cuda":
        return lambda: decode(x, layers)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            decode(x, layers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(x, layers)
    graph.reads = (x, layers)  # a graph does not keep alive what it reads
    return graph.replay


def milliseconds(function, device: torch.device, tokens: int, clock) -> float:
    """The mean time of a token over a run of them."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    for _ in range(tokens):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - begin) / tokens * 1e3


@torch.no_grad()
def main() -> None:
    """Time all groups and orders, in turn, several rounds; print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--head", default="yes", choices=("yes", "no"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", default="wall", choices=("wall", "core"))
    options = parser.parse_args()
    clock = time.process_time if options.clock == "core" else time.perf_counter
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokens = 200 if device.type == "cuda" else 10
    cases = [(group, order) for group in GROUPS for order in ("blocks", "turns") if order == "blocks" or 1 < group < 12]
    functions = {case: token(chain(*case, options.head == "yes", device, dtype), device, dtype) for case in cases}
    times: dict = {case: [] for case in cases}
    for turn in range(options.rounds + 1):
        for case, function in functions.items():
            spent = milliseconds(function, device, tokens, clock)
            if turn:
                times[case].append(spent)
    base, size = statistics.median(times[1, "blocks"]), torch.finfo(dtype).bits // 8
    rows = []
    for (group, order), spent in times.items():
        between = 4 * WIDTH**2 if order == "blocks" else LAYERS // group * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
        rows.append(
            {
                "group": group, "order": order, "ms": statistics.median(spent), "least": min(spent), "most": max(spent),
                "speedup": base / statistics.median(spent), "stored_ffns": LAYERS // group,
                "megabytes_between_uses": between * size / 1e6 if group > 1 else None,
            }
        )  # fmt: skip
        between = rows[-1]["megabytes_between_uses"]
        print(
            f"group {group:2d} {order:6s} {rows[-1]['ms']:7.3f} ms ({min(spent):.3f} to {max(spent):.3f})  "
            f"{rows[-1]['speedup']:.3f}x  between uses: {f'{between:.1f} MB' if between else '-'}",
            flush=True,
        )
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {options.threads} threads"
    found = {"device": name, "dtype": options.dtype, "head": options.head, "rows": rows}
    target = Path(os.environ.get("OUT", ".")) / f"cached_weights_{device.type}_{options.dtype}_head_{options.head}.json"
    target.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
