"""Turn the source text into token streams, one parquet table for each split."""

from pathlib import Path

from stages.core import corpus, sources
from stages.core.architecture.models import open_tokenizer
from stages.core.process import runtime
from stages.core.settings import params

SPLITS = ("train", "validation", "test")


def main(profile: str, lexicon: Path, tokenizer: Path, out: Path) -> None:
    source = params.section(profile, "prepare").source
    words = open_tokenizer(tokenizer)
    for split in runtime.progress(SPLITS, "tokenise"):
        rows = sources.rows(source, split, lexicon)
        corpus.write_tokens(out / f"{split}.parquet", corpus.tokenise(words, rows))
        if split == "test":  # the seeds' protocol of perplexity takes rows, not a stream
            corpus.write_rows(out / "test_rows.parquet", corpus.tokenise_rows(words, rows))


if __name__ == "__main__":
    runtime.entry(main)
