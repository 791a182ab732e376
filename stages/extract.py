"""Record what every FFN does on calibration text (the head of the train split), in one forward pass.

Activations go to parquet, a file a site, as many tokens as were asked for; the first and second moments of what each
matrix reads go to safetensors, over as many tokens as were asked for there, and with them the text itself; which text
that was goes to JSON.
"""

from contextlib import ExitStack
from pathlib import Path

from stages.core.architecture import ffn, opening, rules
from stages.core.architecture.families import family_of
from stages.core.calibration import activations
from stages.core.calibration.moments import MomentStream, to_tensors
from stages.core.process import command, devices
from stages.core.process.artifacts import parquet_writer, replacing, write_json, write_tensors
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import corpus

# What a file of moments calls the sites.
MOMENTS = {"input": "input", "hidden": "post_activation"}


def main(profile: str, model: Path, tokens: Path, out: Path, moments: Path, text: Path) -> None:
    import pyarrow as pa
    import torch

    rules.validate(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "extract")
    dense = opening.open_snapshot(model).to(device)
    family = family_of(dense.config.model_type)
    batches = calibration(corpus.read_tokens(tokens), spec)

    neurons, depth = ffn.width(dense, family), len(family.blocks(dense))
    names = [f"layer_{layer:02d}" for layer in range(depth)]
    schema = pa.schema([(name, pa.list_(pa.float32(), neurons)) for name in names])
    gathered = [{name: MomentStream() for name in MOMENTS} for _ in range(depth)]
    rows_left, moments_left = spec.max_tokens, spec.moment_tokens
    with ExitStack() as open_files:
        draft = open_files.enter_context(replacing(out))
        draft.mkdir()
        writers = {
            site: open_files.enter_context(parquet_writer(draft / f"{site}.parquet", schema)) for site in spec.sites
        }
        stream = activations.stream(dense, family, tuple({*spec.sites, *MOMENTS.values()}), batches)
        for seen in progress(stream, "extract", total=len(batches)):
            for site, writer in writers.items() if rows_left > 0 else ():
                flat = [values[:rows_left].cpu().numpy().ravel() for values in seen[site]]
                arrays = [pa.FixedSizeListArray.from_arrays(values, neurons) for values in flat]
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
        # For surgery that must see the model at work, the text goes along with its moments.
        rows = torch.cat(batches)[: -(-spec.moment_tokens // spec.sequence_length)]
        write_tensors(draft / "text.safetensors", {"rows": rows})
        for name, streams in zip(names, gathered):
            found = {site: stream.moments() for site, stream in streams.items()}
            write_tensors(draft / f"{name}.safetensors", to_tensors(found))
    used = {"activation_tokens": spec.max_tokens, "moment_tokens": spec.moment_tokens}
    write_json(text, {"sha256": corpus.digest(batches), **used, "sequence_length": spec.sequence_length})


def calibration(text, spec) -> list:
    """Batches of packed sequences that hold as many tokens as the larger of the two budgets."""
    key = "max_tokens" if spec.max_tokens >= spec.moment_tokens else "moment_tokens"
    wanted = -(-getattr(spec, key) // spec.sequence_length) * spec.sequence_length
    if len(text) < wanted:
        raise UserError(
            f"params.yaml: extract.{key} = {getattr(spec, key)}: the train split has only {len(text)} tokens"
        )
    return list(corpus.pack(text[:wanted], spec.sequence_length).split(spec.batch_size))


if __name__ == "__main__":
    command.entry(main)
