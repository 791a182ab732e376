"""Articles with their summaries, as text, one parquet table for each split."""

from pathlib import Path

from stages.core.process import command
from stages.core.process.artifacts import parquet_writer
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import sources


def main(profile: str, lexicon: Path, summaries: Path, out: Path) -> None:
    import pyarrow as pa

    section = params.section(profile, "articles")  # null where the task has no articles: then both tables are empty
    schema = pa.schema([("article", pa.string()), ("summary", pa.string())])
    for split in progress(("train", "test"), "articles"):
        pairs = sources.pairs(section.source, split, lexicon, summaries) if section else []
        rows = [dict(zip(schema.names, pair)) for pair in pairs]
        with parquet_writer(out / f"{split}.parquet", schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema))


if __name__ == "__main__":
    command.entry(main)
