"""Turn the source text into token streams, one parquet table for each split, and count rows that are in two splits."""

from pathlib import Path

from stages.core.process import command
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import corpus, sources
from stages.core.text.tokenizer import open_tokenizer

SPLITS = ("train", "validation", "test")


def main(profile: str, lexicon: Path, tokenizer: Path, out: Path) -> None:
    source = params.section(profile, "prepare").source
    tokenizer, learnt, found = open_tokenizer(tokenizer), set(), {}
    for split in progress(SPLITS, "tokenise"):
        rows = sources.rows(source, split, lexicon)
        corpus.write_tokens(out / f"{split}.parquet", corpus.tokenise(tokenizer, rows))
        if split == "train":
            learnt = {row.strip() for row in rows}
        else:
            found[split] = corpus.shared(rows, learnt)
        if split == "test":  # the notes' protocol of perplexity takes rows, not a stream
            corpus.write_rows(out / "test_rows.parquet", corpus.tokenise_rows(tokenizer, rows))
    write_json(out / "overlap.json", found)


if __name__ == "__main__":
    command.entry(main)
