"""What the report says, chapter by chapter: text (inline Markdown), tables and pictures in reading order."""

from dataclasses import dataclass

from stages.core.reporting import beside, tables
from stages.core.reporting.study import Study, by_size
from stages.core.reporting.tables import Table


@dataclass(frozen=True)
class Picture:
    """A drawing by name, with what it shows in words; a wide one has two panels side by side."""

    name: str
    words: str
    wide: bool = False


@dataclass(frozen=True)
class Chapter:
    title: str
    parts: list[str | Table | Picture]


def chapters(study: Study) -> list[Chapter]:
    """All chapters, in reading order."""
    images = study.has("perplexity", "accuracy_after")
    published = [_published(study)] if study.has("sentiment", "accuracy") else []
    return [
        _variants(study),
        *_tasks(study),
        _recovery(study),
        _windows(study),
        _neighbours(study),
        *([_published_of_images(study)] if images else published),
        _provenance(study),
    ]


def _variants(study: Study) -> Chapter:
    best = ", ".join(f"`{name}`" for name in by_size(study))
    return Chapter(
        "Variants",
        [
            "Perplexity is on the test split, which chose nothing, before and after the same fine-tuning; *to control* "
            "compares with the original model after it. Its 95% interval says how well this test split, which both "
            "models read, lets the ratio be known for all such text, by the first seed. *Stored* counts every tensor "
            f"once. {_measures(study)}"
            "*Speed-up* is the original's time over the variant's, both timed in turns in one process: for `original` "
            "itself it is the noise of that comparison.",
            tables.headline(study),
            *_untold(study),
            Picture(
                "perplexity_by_size",
                "Test perplexity against stored parameters, before and after fine-tuning",
                wide=True,
            ),
            f"On the line, no smaller or equal variant has a lower perplexity after fine-tuning: {best}.",
            Picture("perplexity_by_speed", "Test perplexity against the speed-up over the original model"),
            "Sharing saves memory, not arithmetic. A model computes less where layers are gone or matrices are of low "
            f"rank. *Dense* counts a shared weight in every layer that uses it.{_rates(study)}",
            tables.storage(study),
        ],
    )


def _untold(study: Study) -> list[str]:
    """The variants whose order in perplexity the test split leaves open; nothing where there are none."""
    if not study.untold:
        return []
    pairs = "; ".join(f"`{lower}` and `{higher}`" for lower, higher in study.untold)
    return [f"The test split does not tell these neighbours in perplexity apart (by the first seed): {pairs}."]


def _rates(study: Study) -> str:
    """What images a second of two variants are worth beside each other."""
    if not any(key.startswith("images_per_second") for key in study.latency["original"]):
        return ""
    return (
        " *Images/s* of two variants come from different minutes of the machine: compare variants by their speed-up, "
        "whose two sides were timed in turns."
    )


def _measures(study: Study) -> str:
    """What the columns of the headline are that only some tasks have."""
    said = ""
    if study.has("perplexity", "other_after"):
        said += (
            f"*Other ppl* is on {study.perplexity['original']['other_tokens']:,} tokens of another text, of another "
            "kind than what models were calibrated and trained on. "
        )
    if study.has("perplexity", "accuracy_after"):
        said += "For images, perplexity is exp of the cross-entropy, and *accuracy* is on the same images. "
    if study.has("sentiment", "accuracy"):
        said += "*Accuracy* is sentiment on held-out reviews, *ROUGE-L* is of summaries without their prompt. "
    return said


def _tasks(study: Study) -> list[Chapter]:
    if study.has("perplexity", "accuracy_after"):
        images = study.perplexity["original"][study.unit]
        said = (
            f"On {images:,} test images, which chose nothing. All variants answer the same images, so a difference "
            "between two is known better than their intervals suggest."
        )
        picture = Picture("accuracy_by_size", "Test accuracy against stored parameters, with 95% intervals")
        found = [Chapter("Accuracy", [said, picture, tables.accuracy(study)])]
        return [*found, _answers(study)] if study.images else found
    reviews, articles = study.sentiment["original"], study.summarization["original"]
    seeds = "one seed" if articles["seeds"] == 1 else f"mean of {articles['seeds']} seeds"
    return [
        Chapter(
            "Two tasks",
            [
                f"Sentiment: {reviews['examples']:,} held-out reviews; accuracy, interval and F1 are the first seed's. "
                "A variant has learnt something where its interval lies above the majority class.",
                tables.sentiment(study),
                f"Summaries: {articles['articles']:,} articles, {seeds}; ROUGE is of the continuation only, beside "
                "that of each article's first three sentences.",
                tables.summarization(study),
            ],
        )
    ]


def _answers(study: Study) -> Chapter:
    said = (
        "Test images on which not all recovered variants agree, from those on which one differs from `original` to "
        "those on which many do. Above each image stands its label. A dot is a right answer; wrong ones are written."
    )
    picture = Picture("answers", "Test images with every variant's answer", wide=True)
    return Chapter("Where variants differ", [said, picture])


def _recovery(study: Study) -> Chapter:
    budgets = " and ".join(sorted({f"{recovery[study.unit]:,}" for recovery in study.recovery.values()}))
    return Chapter(
        "Recovery",
        [
            f"Every variant was trained on {budgets} {study.unit}. What is kept is the best state on the validation "
            f"split of all that were scored, the start included; where it was kept after 0 {study.unit}, training only "
            "did harm.",
            Picture(
                "training", "Training loss and validation perplexity of every variant during its recovery", wide=True
            ),
            "What a training loss adds up differs between variants: those without a teacher have the text's part "
            "alone. So it says how one variant learns. Across variants, compare perplexity.",
            tables.recovery(study),
        ],
    )


def _windows(study: Study) -> Chapter:
    found = tables.searches(study)
    searched = [
        "Each window was scored before any training, with the start that its variant's surgery gives it; where layers "
        "have deltas, what refits them comes afterwards.",
        "An arrow in the picture stands for a window far above the rest, with its perplexity.",
        Picture("window_search", "Validation perplexity of every window before training"),
        *found,
    ]
    forms = "What a mixture stores of every FFN matrix, and in which form"
    return Chapter(
        "Which layers",
        [
            tables.groups(study),
            *(searched if found else ["No variant asked for its best window."]),
            *([Picture("forms", forms, wide=True)] if any("shares" in each for each in study.windows.values()) else []),
        ],
    )


def _neighbours(study: Study) -> Chapter:
    chance = ", ".join(f"{found['null']:.3f} (`{site}`)" for site, found in study.alignment["sites"].items())
    return Chapter(
        "Do layers agree?",
        [
            f"Mean correlation of neuron pairs over {study.alignment['tokens']:,} tokens. Only the excess over chance "
            f"counts, which is what neighbouring layers reach at different tokens, matched the same way: {chance} "
            f"(independent neurons: {study.alignment['independent']:.3f}).",
            Picture(
                "correlations",
                "Mean correlation of the neurons of every two layers, matched and as numbered",
                wide=True,
            ),
            *tables.neighbours(study),
        ],
    )


def _published(study: Study) -> Chapter:
    seeds = study.published.seeds
    model = study.provenance["model"]
    if model == seeds.model:
        comparable = (
            f"This run is of the same model, `{model}`. Where its text is the notes' and `seed_protocol` has its "
            "defaults, *notes' protocol* and *published* may be compared line by line; dense parameters in any case, "
            "latencies only on like devices. *Ours* measures something else, and no published column stands for it."
        )
    else:
        comparable = (
            f"The published figures are of `{seeds.model}`, this run is of `{model}`: no value here may be compared "
            "with a published one, only the order of variants within a column, and how far *ours* and the *notes' "
            "protocol* lie apart. Profile `gpt2` makes the comparison line by line."
        )
    return Chapter(
        "Beside published figures",
        [
            comparable,
            f"*Published*: {seeds.title}. {seeds.protocol} *Notes' protocol*: our models, measured as these notes did.",
            *beside.beside(study),
            f"“{tables.NOTHING}” was not measured, or not published.",
            "Others on WikiText-2, each comparable with figures of its own source only:",
            *beside.elsewhere(study.published.elsewhere),
        ],
    )


def _published_of_images(study: Study) -> Chapter:
    return Chapter(
        "Published figures",
        [
            "Of others who made image classifiers smaller or faster, on ImageNet-1k's validation images. No value here "
            "may be compared with one of this run: images, recipes and devices are others. Within a source, what a "
            "method costs in accuracy for the share of parameters that it saves may be.",
            *beside.elsewhere(study.published.images),
        ],
    )


def _provenance(study: Study) -> Chapter:
    return Chapter(
        "Where the figures come from",
        [
            f"Model: {model(study)}, weights sha256 `{study.provenance['sha256']}`.",
            ("Text: " if study.unit == "tokens" else "Images: ")
            + "; ".join(_shared(study, split) for split in ("test", "validation", "other") if split in study.overlap)
            + ".",
            _calibration(study),
            "*Precision* is that of the arithmetic; weights are kept in float32.",
            tables.environments(study),
        ],
    )


def _calibration(study: Study) -> str:
    """What the model was read on, in words."""
    read = study.calibration
    budget = f"{read['activation_tokens']:,} tokens of activations and {read['moment_tokens']:,} of moments"
    if "images" in read:
        return (
            f"Calibration images: the first {read['images']:,} of the train split, {budget}, "
            f"{read['tokens_per_image']} tokens an image, sha256 `{read['sha256']}`."
        )
    return (
        f"Calibration text: the head of the train split, {budget} in sequences of {read['sequence_length']}, token ids "
        f"sha256 `{read['sha256']}`."
    )


def _shared(study: Study, split: str) -> str:
    """How much of a split is also in the train split, in words."""
    found = study.overlap[split]
    if "characters" not in found:
        return f"{found['shared_rows']:,} of the {split} split's {found['rows']:,} images are in the train split too"
    share = found["shared_characters"] / found["characters"] if found["characters"] else 0
    name = "the other text" if split == "other" else f"the {split} split"
    return (
        f"{found['shared_rows']:,} of {name}'s {found['rows']:,} rows ({share:.1%} of its characters) are "
        "rows of the train split too"
    )


def model(study: Study) -> str:
    """The model under study in a line."""
    known = study.provenance
    name = f"`{known['gguf_file'] or known['model']}`"
    revision = f", revision `{known['resolved_revision']}`" if known["resolved_revision"] else ""
    return f"{name}{revision} ({known['model_type']}, {known['layers']} layers, {known['parameters']:,} parameters)"
