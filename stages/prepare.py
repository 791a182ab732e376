"""Make the splits: text as token streams, or labelled images, one parquet table each. Count rows that are in two.

Beside them lies the other text, a stream without tokens where there is none. A split of images is a table of encoded
images with labels (stages.core.images.table). Images have no rows beside it.
"""

import json
from pathlib import Path

from stages.core.images import sources as image_sources
from stages.core.images import table
from stages.core.process import command
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.settings.images import PrepareImages
from stages.core.text import corpus, sources
from stages.core.text.tokenizer import open_tokenizer, start_tokens

SPLITS = ("train", "validation", "test")


def main(profile: str, lexicon: Path, tokenizer: Path, out: Path) -> None:
    section = params.section(profile, "prepare")
    write = write_images if isinstance(section, PrepareImages) else write_text
    write(section, lexicon, tokenizer, out)


def write_text(section, lexicon: Path, tokenizer: Path, out: Path) -> None:
    tokenizer, learnt, found = open_tokenizer(tokenizer), set(), {}
    start = next(iter(start_tokens(tokenizer)), None)
    for split in progress(SPLITS, "tokenise"):
        rows = sources.rows(section.source, split, lexicon)
        corpus.write_tokens(out / f"{split}.parquet", corpus.tokenise(tokenizer, rows), start)
        if split == "train":
            learnt = {row.strip() for row in rows}
        else:
            found[split] = corpus.shared(rows, learnt)
        if split == "test":  # the notes' protocol of perplexity takes rows, not a stream
            corpus.write_rows(out / "test_rows.parquet", corpus.tokenise_rows(tokenizer, rows))
    other = sources.other_rows(section.other.source, lexicon, section.source) if section.other else []
    corpus.write_tokens(out / "other.parquet", corpus.tokenise(tokenizer, other), start)
    if other:
        found["other"] = corpus.shared(other, learnt)
    write_json(out / "overlap.json", found)


def write_images(section, lexicon: Path, processor: Path, out: Path) -> None:
    source = section.source
    config = json.loads((processor / "preprocessor_config.json").read_text(encoding="utf-8"))
    names = image_sources.names(source)
    rows = {
        split: table.write(out / f"{split}.parquet", image_sources.rows(source, split), config, names)
        for split in progress(SPLITS, "images")
    }
    table.refuse_other_labels({split: table.labels(out / f"{split}.parquet") for split in SPLITS}, names)
    write_json(out / "overlap.json", {split: table.shared(rows[split], rows["train"]) for split in SPLITS[1:]})
    corpus.write_rows(out / "test_rows.parquet", [])
    corpus.write_tokens(out / "other.parquet", [])


if __name__ == "__main__":
    command.entry(main)
