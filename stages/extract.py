"""Record what every FFN neuron does on calibration text (the head of the train split), in one forward pass."""

from pathlib import Path

from stages.core import activations, corpus, ffn, models, params, runtime
from stages.core.artifacts import parquet_writer
from stages.core.errors import UserError
from stages.core.families import family_of


def main(profile: str, model: Path, tokens: Path, out: Path) -> None:
    import pyarrow as pa

    device = runtime.start(params.section(profile, "runtime"))
    spec = params.section(profile, "extract")
    dense = models.open_snapshot(model).to(device)
    models.check_fits(dense, "extract.sequence_length", spec.sequence_length)
    family = family_of(dense.config.model_type)
    wanted = -(-spec.max_tokens // spec.sequence_length) * spec.sequence_length
    text = corpus.read_tokens(tokens, wanted)
    if len(text) < wanted:
        raise UserError(f"extract.max_tokens = {spec.max_tokens}: the train split has only {len(text)} tokens")
    batches = corpus.pack(text, spec.sequence_length).split(spec.batch_size)

    neurons, depth = ffn.width(dense, family), len(family.blocks(dense))
    column = pa.list_(pa.float32(), neurons)
    names = [f"layer_{layer:02d}" for layer in range(depth)]
    left = spec.max_tokens
    with parquet_writer(out, pa.schema([(name, column) for name in names])) as writer:
        stream = activations.stream(dense, family, spec.site, batches)
        for seen in runtime.progress(stream, "extract", total=len(batches)):
            rows = min(left, len(seen[0]))
            flat = [layer[:rows].cpu().numpy().ravel() for layer in seen]
            arrays = [pa.FixedSizeListArray.from_arrays(values, neurons) for values in flat]
            writer.write_batch(pa.record_batch(arrays, names=names))
            left -= rows


if __name__ == "__main__":
    runtime.entry(main)
