"""Record the activations and moments of every FFN on calibration rows, the head of the train split.

Parquet: the activations of `max_tokens` tokens, a file for each site. Safetensors: the first and second moments of each
matrix's input over `moment_tokens` tokens, a file for each layer, and the rows themselves. JSON: a hash of the rows.
"""

from contextlib import ExitStack
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import activations
from stages.core.calibration.moments import MomentStream, to_tensors
from stages.core.process import command, devices
from stages.core.process.artifacts import parquet_writer, replacing, write_json, write_tensors
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.tasks import choice

# The name in a file of moments -> the site.
MOMENTS = {"input": "input", "hidden": "post_activation"}


def main(profile: str, model: Path, tokens: Path, out: Path, moments: Path, text: Path) -> None:
    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "extract")
    view = ModelView(opening.open_snapshot(model).to(device))
    rows = choice.task_of(model).calibration(view, tokens, spec)

    with replacing(out) as draft:
        draft.mkdir()
        found = gather(view, progress(rows.batches, "extract"), spec, draft)
    with replacing(moments) as draft:
        draft.mkdir()
        # Repairs run the model on the rows themselves.
        write_tensors(draft / "text.safetensors", rows.kept)
        for layer, streams in enumerate(found):
            tensors = to_tensors({name: stream.moments() for name, stream in streams.items()})
            write_tensors(draft / f"layer_{layer:02d}.safetensors", tensors)
            streams.clear()
    write_json(text, rows.known)


def gather(view, batches, spec, folder: Path) -> list:
    """Every layer's streams of moments by name; the activations are written to a table for each site in `folder`."""
    import pyarrow as pa

    neurons = [view.neurons(layer) for layer in range(view.depth)]
    names = [f"layer_{layer:02d}" for layer in range(view.depth)]
    schema = pa.schema([(name, pa.list_(pa.float32(), width)) for name, width in zip(names, neurons)])
    gathered = [{name: MomentStream() for name in MOMENTS} for _ in range(view.depth)]
    rows_left, moments_left = spec.max_tokens, spec.moment_tokens
    with ExitStack() as open_files:
        # Activations do not compress.
        writers = {
            site: open_files.enter_context(parquet_writer(folder / f"{site}.parquet", schema, "none"))
            for site in spec.sites
        }
        for seen in activations.stream(view, tuple({*spec.sites, *MOMENTS.values()}), batches):
            for site, writer in writers.items() if rows_left > 0 else ():
                flat = [values[:rows_left].cpu().numpy().ravel() for values in seen[site]]
                arrays = [pa.FixedSizeListArray.from_arrays(values, width) for values, width in zip(flat, neurons)]
                writer.write_batch(pa.record_batch(arrays, names=names))
            if moments_left > 0:
                for layer, streams in enumerate(gathered):
                    for name, site in MOMENTS.items():
                        streams[name].update(seen[site][layer][:moments_left])
            tokens_seen = len(seen[spec.sites[0]][0])
            rows_left -= tokens_seen
            moments_left -= tokens_seen
    return gathered


if __name__ == "__main__":
    command.entry(main)
