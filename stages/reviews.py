"""Turn labelled texts into token rows for the sentiment task, balanced over the labels, one table for each split."""

from pathlib import Path

from stages.core.process import command
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import labelled, sources
from stages.core.text.tokenizer import open_tokenizer, start_tokens

SPLITS = ("train", "test")


def main(profile: str, lexicon: Path, reviews: Path, tokenizer: Path, out: Path) -> None:
    spec = params.section(profile, "reviews")
    if spec is None:  # the task has no reviews
        for split in SPLITS:
            labelled.write(out / f"{split}.parquet", [], [])
        return
    tokenizer = open_tokenizer(tokenizer)
    found = {split: sources.labelled(spec.source, split, lexicon, reviews) for split in SPLITS}
    found["train"] = labelled.apart(found["train"], found["test"])
    chosen = {
        split: labelled.balanced(rows, getattr(spec, f"max_{split}"), spec.seed, split) for split, rows in found.items()
    }
    labelled.check(chosen["train"], chosen["test"])
    start = start_tokens(tokenizer)
    for split in progress(SPLITS, "tokenise reviews"):
        rows = labelled.tokenise(tokenizer, chosen[split], spec.template, spec.max_tokens, spec.keep, start)
        labelled.write(out / f"{split}.parquet", rows, [label for _, label in chosen[split]])


if __name__ == "__main__":
    command.entry(main)
