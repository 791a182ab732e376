"""Measure what is fast here against a peer or this machine's limit: `make bench`, or `make bench ONLY=align`.

A line for each figure, `name: ratio (ours, other)`. Both ways of a pair are measured in one run, by turns; a line has
their medians and spread. Nothing else should run on the machine; where something does:
OMP_NUM_THREADS=1 python -m tests.benchmarks --clock core.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from stages.core.process import devices
from tests.benchmarks import figures
from tests.benchmarks.measuring import CLOCKS, WALL, Figure, measure_by


def main(only: str, to: Path, clock: str = WALL) -> None:
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{devices._processor()}, {threads} threads, load {load:.1f}, {clock} clock, {to}", flush=True)
    records = []
    begin = time.perf_counter()
    measure_by(clock)
    for figure in measured(only):
        print(figure.line(), flush=True)
        records.append(figure.record())
        to.parent.mkdir(parents=True, exist_ok=True)
        where = devices.environment(torch.device("cpu"))
        to.write_text(
            json.dumps({"where": where, "load": os.getloadavg()[0], "clock": clock, "figures": records}, indent=2)
            + "\n"
        )
    print(f"{len(records)} figures in {time.perf_counter() - begin:.0f} s")


def measured(only: str) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen(only):
            yield from figures.FIGURES[name](Path(folder))


def chosen(only: str) -> list[str]:
    """The groups of figures whose name has `only` in it."""
    return [name for name in figures.FIGURES if only in name]


def entry(arguments: list[str] | None = None) -> None:
    """Read the command line and measure. Exits with 2 where it names no group of figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="the figures whose group has this in its name")
    parser.add_argument("--to", type=Path, default=Path("exported/bench.json"))
    parser.add_argument("--clock", default=WALL, choices=CLOCKS, help="core: seconds of the cores, on a busy machine")
    options = parser.parse_args(arguments)
    if not chosen(options.only):
        names = ", ".join(figures.FIGURES)
        parser.exit(2, f"ONLY={options.only}: no group of figures has this in its name; there are {names}\n")
    main(options.only, options.to, options.clock)


if __name__ == "__main__":
    entry()
