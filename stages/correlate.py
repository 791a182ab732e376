"""Correlate the neurons of every two layers near enough to share a window."""

from pathlib import Path

from stages.core.calibration.alignment import CorrelationStream
from stages.core.process import command, devices
from stages.core.process.artifacts import numbers, parquet_reader, replacing, write_tensors
from stages.core.process.progress import progress
from stages.core.settings import params


def main(profile: str, activations: Path, out: Path) -> None:
    device = devices.start(params.section(profile, "runtime"))
    reach = params.section(profile, "correlate").reach
    with replacing(out) as draft:
        for table in sorted(activations.glob("*.parquet")):
            with parquet_reader(table) as file:
                names = file.schema_arrow.names
                for first in progress(range(len(names)), f"correlate {table.stem}"):
                    group = names[first : first + reach]
                    write_tensors(draft / table.stem / f"{group[0]}.safetensors", correlations(file, group, device))


def correlations(file, group: list[str], device) -> dict:
    """Tensors by name: the first layer's correlations with each other of `group`, its `dead` neurons, and `tokens`."""
    import torch

    streams = {name: CorrelationStream() for name in group}
    for batch in file.iter_batches(batch_size=1024, columns=group):
        rows = {name: torch.from_numpy(_matrix(batch[name])).to(device) for name in group}
        for name, stream in streams.items():
            stream.update(rows[group[0]], rows[name])
    own = streams.pop(group[0])
    return {name: stream.matrix().float() for name, stream in streams.items()} | {
        "dead": own.dead()[0],
        "tokens": torch.tensor(own.count),
    }


def _matrix(column):
    """A fixed-size-list column as an array of shape (rows, d_ff)."""
    return numbers(column.flatten()).reshape(len(column), -1).copy()


if __name__ == "__main__":
    command.entry(main)
