"""Correlate the neurons of every two layers near enough to share a window."""

from pathlib import Path

from stages.core import params, runtime
from stages.core.alignment import CorrelationStream
from stages.core.artifacts import parquet_reader, replacing, write_tensors


def main(profile: str, activations: Path, out: Path) -> None:
    import torch

    device = runtime.start(params.section(profile, "runtime"))
    reach = params.section(profile, "correlate").reach
    with parquet_reader(activations) as file, replacing(out) as draft:
        draft.mkdir()
        names = file.schema_arrow.names
        for first in runtime.progress(range(len(names)), "correlate"):
            group = names[first : first + reach]
            streams = {name: CorrelationStream() for name in group}
            for batch in file.iter_batches(batch_size=1024, columns=group):
                rows = {name: torch.from_numpy(_matrix(batch[name])).to(device) for name in group}
                for name, stream in streams.items():
                    stream.update(rows[group[0]], rows[name])
            own = streams.pop(group[0])
            write_tensors(
                draft / f"{group[0]}.safetensors",
                {name: stream.matrix().float() for name, stream in streams.items()}
                | {"dead": own.dead()[0], "tokens": torch.tensor(own.count)},
            )


def _matrix(column):
    """A fixed-size-list column as a (rows, neurons) array."""
    return column.flatten().to_numpy().reshape(len(column), -1).copy()


if __name__ == "__main__":
    runtime.entry(main)
