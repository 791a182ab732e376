"""Correlate the neurons of every two layers near enough to share a window."""

from functools import partial
from itertools import chain, groupby
from pathlib import Path

from stages.core.calibration.correlation import SHIFTED, correlations, shifted, standardised
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
                rows_of = partial(read, file, device=device)
                pairs = chain(*(within_reach(rows_of, names, reach) for names in stages(file.schema_arrow)))
                for name, tensors in progress(pairs, f"correlate {table.stem}", total=len(file.schema_arrow)):
                    write_tensors(draft / table.stem / f"{name}.safetensors", tensors)


def stages(schema) -> list[list[str]]:
    """The layers of each stage: those in a row whose FFNs are alike. Of most models that is one."""
    return [list(names) for _, names in groupby(schema.names, lambda name: schema.field(name).type)]


def within_reach(rows_of, names: list[str], reach: int):
    """For every layer its name and tensors by name: correlations with each layer in reach, `dead` neurons, `tokens`.

    `shifted` are those with the next layer at other tokens, which say what is chance.

    rows_of(name): the activations of a layer, (tokens, d_ff). Every layer is read and standardised once.
    """
    import torch

    known = {}
    for first, name in enumerate(names):
        group = names[first : first + reach]
        known |= {other: standardised(rows_of(other)) for other in group if other not in known}
        own, dead = known.pop(name)
        tensors = {other: correlations(own, known[other][0]).cpu() for other in group[1:]}
        if group[1:]:
            tensors[SHIFTED] = correlations(own, shifted(known[group[1]][0])).cpu()
        yield name, tensors | {"dead": dead, "tokens": torch.tensor(len(own))}


def read(file, name: str, device):
    """A column of lists of one length as a tensor, (rows, d_ff)."""
    import torch

    column = file.read(columns=[name])[name].combine_chunks()
    return torch.from_numpy(numbers(column.flatten()).reshape(len(column), -1).copy()).to(device)


if __name__ == "__main__":
    command.entry(main)
