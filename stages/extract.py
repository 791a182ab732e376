"""Record the activations and moments of every FFN on calibration text, the head of the train split.

Parquet: the activations of `max_tokens` tokens, a file for each site. Safetensors: the first and second moments of each
matrix's input over `moment_tokens` tokens, a file for each layer, and the text itself. JSON: a hash of the text.
"""

from contextlib import ExitStack
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.view import ModelView
from stages.core.calibration import activations
from stages.core.calibration.moments import MomentStream, to_tensors
from stages.core.process import command, devices
from stages.core.process.artifacts import parquet_writer, replacing, write_json, write_tensors
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import corpus

# The name in a file of moments -> the site.
MOMENTS = {"input": "input", "hidden": "post_activation"}


def main(profile: str, model: Path, tokens: Path, out: Path, moments: Path, text: Path) -> None:
    import pyarrow as pa
    import torch

    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "extract")
    view = ModelView(opening.open_snapshot(model).to(device))
    batches = calibration(corpus.read_tokens(tokens), spec)

    neurons = [view.neurons(layer) for layer in range(view.depth)]
    names = [f"layer_{layer:02d}" for layer in range(view.depth)]
    schema = pa.schema([(name, pa.list_(pa.float32(), width)) for name, width in zip(names, neurons)])
    gathered = [{name: MomentStream() for name in MOMENTS} for _ in range(view.depth)]
    rows_left, moments_left = spec.max_tokens, spec.moment_tokens
    with ExitStack() as open_files:
        draft = open_files.enter_context(replacing(out))
        draft.mkdir()
        writers = {
            site: open_files.enter_context(parquet_writer(draft / f"{site}.parquet", schema)) for site in spec.sites
        }
        stream = activations.stream(view, tuple({*spec.sites, *MOMENTS.values()}), batches)
        for seen in progress(stream, "extract", total=len(batches)):
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
    with replacing(moments) as draft:
        draft.mkdir()
        # Repairs run the model on the text itself.
        rows = torch.cat(batches)[: -(-spec.moment_tokens // spec.sequence_length)]
        write_tensors(draft / "text.safetensors", {"rows": rows})
        for name, streams in zip(names, gathered):
            found = {site: stream.moments() for site, stream in streams.items()}
            write_tensors(draft / f"{name}.safetensors", to_tensors(found))
    used = {"activation_tokens": spec.max_tokens, "moment_tokens": spec.moment_tokens}
    write_json(text, {"sha256": corpus.digest(batches), **used, "sequence_length": spec.sequence_length})


def calibration(text, spec) -> list:
    """Batches of packed sequences, int64, (sequences, length), with the tokens of the larger of the two budgets."""
    key = "max_tokens" if spec.max_tokens >= spec.moment_tokens else "moment_tokens"
    needed = -(-getattr(spec, key) // spec.sequence_length) * spec.sequence_length
    if len(text) < needed:
        raise UserError(
            f"params.yaml: extract.{key} = {getattr(spec, key)}: the train split has only {len(text)} tokens"
        )
    return list(corpus.pack(text[:needed], spec.sequence_length).split(spec.batch_size))


if __name__ == "__main__":
    command.entry(main)
