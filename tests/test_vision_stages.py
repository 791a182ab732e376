"""Every stage by hand, in order, on a tiny image classifier and images of patterns: what differs is the task alone."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_vision
import torch
from closure import ROOT
from ruamel.yaml import YAML

from stages import (
    align,
    articles,
    base,
    control,
    correlate,
    extract,
    finetune,
    generate,
    latency,
    perplexity,
    prepare,
    report,
    reviews,
    search,
    sentiment,
    summarize,
    surgery,
)
from stages.core.architecture import opening
from stages.core.forms import checkpoint
from stages.core.images import table
from stages.core.process.artifacts import read_tensors
from stages.core.reporting import answers
from stages.core.tasks import timing
from stages.core.tasks.images import ImageClassification

VARIANTS = ("original", "softshare", "merged_2", "compressed_2")


def settings() -> dict:
    """params.yaml with one profile for images, of seconds, and a variant of every kind."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    values["profile"] = "tiny"
    source = {"kind": "patterns", "seed": 0, "labels": 7, "side": 12, "train": 84, "validation": 28, "test": 42}
    values["profiles"] = {
        "tiny": {
            "task": "image_classification",
            "runtime": {"device": "cpu", "threads": 1},
            "base": {"model": "source"},
            "prepare": {"source": source},
            "reviews": None,
            "extract": {"max_tokens": 200, "moment_tokens": 300, "batch_size": 4},
            "correlate": {"reach": 3},
            "search": {"max_images": 14, "batch_size": 8},
            "finetune": {"epochs": 1, "batch_size": 14, "learning_rate": {"all": 1e-3}, "validation": {"times": 2}},
            "sentiment": None,
            "perplexity": {"batch_size": 16},
            "generate": {"max_images": 10},
            "latency": {"batch_sizes": [1, 4], "warmup": 0, "repeats": 2},
            "articles": None,
            "summarize": None,
        }
    }
    variants, like = values["variants"], {"size": 2, "rank": 2}
    variants["softshare"]["windows"] |= {"sizes": [2, 3], "target_parameters": like}
    variants["softshare"]["surgery"]["rank"] = 2
    for name, source in (("merged_2", "merged_4"), ("compressed_2", "compressed_4")):
        variants[name] = variants[source] | {"windows": {"choose": "blocks", "size": 2}}
    values["variants"] = {name: variants[name] for name in VARIANTS}
    return values


def write_settings(values: dict) -> None:
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(values, file)


def for_variant(variant: str) -> None:
    """The chain of stages of one variant."""
    here = {"profile": "tiny", "variant": variant}
    shared, tuned = Path(f"surgery/{variant}"), Path(f"finetuned/{variant}")
    windows, known = Path(f"windows/{variant}.json"), (Path("permutations.npz"), Path("moments"))
    test = Path("text/test.parquet")
    search.main(
        *here.values(), Path("model"), Path("provenance.json"), Path("text/validation.parquet"), *known, windows
    )
    surgery.main(
        *here.values(), Path("model"), Path("processor"), windows, *known, shared, Path(f"sizes/{variant}.json")
    )
    finetune.main(
        **here, original=Path("model"), control=Path("control"), model=shared, tokens=Path("text/train.parquet"),
        validation=Path("text/validation.parquet"), unfinished=Path("unfinished"), out=tuned,
        curve=Path(f"training/{variant}.csv"), history=Path(f"recovery/{variant}.json"),
    )  # fmt: skip
    both = {"before": shared, "after": tuned}
    text = {"tokens": test, "rows": Path("text/test_rows.parquet"), "other": Path("text/other.parquet")}
    perplexity.main(
        **here, **both, **text, out=Path(f"perplexity/{variant}.json"), predictions=Path(f"losses/{variant}.parquet"),
    )  # fmt: skip
    generate.main(**here, **both, tokenizer=Path("processor"), tokens=test, out=Path(f"samples/{variant}.json"))
    latency.main(**here, original=Path("model"), model=tuned, tokens=test, out=Path(f"latency/{variant}.json"))
    sentiment.main(
        **here, model=tuned, train=Path("reviews/train.parquet"), test=Path("reviews/test.parquet"),
        out=Path(f"sentiment/{variant}.json"), predictions=Path(f"predictions/{variant}.parquet"),
    )  # fmt: skip
    summarize.main(
        **here, model=tuned, tokenizer=Path("processor"), train_pairs=Path("articles/train.parquet"),
        test_pairs=Path("articles/test.parquet"), out=Path(f"summarization/{variant}.json"),
        predictions=Path(f"predictions/summarization/{variant}.parquet"),
    )  # fmt: skip


@pytest.fixture(scope="module", params=tiny_vision.parameters("vit", "swin", "timm_wrapper"))
def study(request, tmp_path_factory):
    """A folder in which every stage has run on a tiny model of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_vision.model(request.param).save_pretrained("source")
        opening.save_processor(tiny_vision.processor(request.param), Path("source"))
        values = settings()
        if request.param == "timm_wrapper":  # its last stage has one token of so small an image
            values["profiles"]["tiny"]["extract"] |= {"max_tokens": 80, "moment_tokens": 84}
        write_settings(values)
        base.main("tiny", Path("model"), Path("processor"), Path("provenance.json"))
        prepare.main("tiny", Path("no-lexicon"), Path("processor"), Path("text"))
        reviews.main("tiny", Path("no-lexicon"), Path("no-reviews"), Path("processor"), Path("reviews"))
        articles.main("tiny", Path("no-lexicon"), Path("no-summaries"), Path("articles"))
        train, held_out = Path("text/train.parquet"), Path("text/validation.parquet")
        extract.main("tiny", Path("model"), train, Path("activations"), Path("moments"), Path("calibration.json"))
        correlate.main("tiny", Path("activations"), Path("correlations"))
        known = Path("permutations.npz"), Path("alignment.json")
        align.main("tiny", Path("model"), Path("moments"), Path("correlations"), *known)
        control.main("tiny", Path("model"), train, held_out, Path("unfinished"), Path("control"))
        for variant in VARIANTS:
            for_variant(variant)
        files = {name: Path(f"{name}.json") for name in ("provenance", "calibration", "alignment", "summary")}
        folders = (
            "windows", "sizes", "recovery", "training", "perplexity", "losses", "latency", "sentiment", "summarization",
            "samples", "variants", "points", "plots",
        )  # fmt: skip
        pages = {"report": Path("report.md"), "texts": Path("samples.md"), "html": Path("report.html")}
        given = {"literature": ROOT / "data" / "published.yaml", "templates": ROOT / "templates"}
        given |= {"overlap": Path("text/overlap.json"), "tokens": Path("text/test.parquet")}
        report.main(profile="tiny", **files, **{name: Path(name) for name in folders}, **pages, **given)
        yield folder


def read(study: Path, name: str) -> dict:
    return json.loads((study / name).read_text())


def test_accuracy_is_scikit_learn_s_on_the_kept_answers(study):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

    images, found = table.read(study / "text/test.parquet"), read(study, "perplexity/merged_2.json")
    model = checkpoint.load(study / "finetuned/merged_2")[0].model
    with torch.no_grad():
        shares = model(images.whole().pixels).logits.double().softmax(1).numpy()
    labels, answers = images.labels.numpy(), shares.argmax(1)
    assert found["images"] == len(labels) == 42 and not [key for key in found if key.startswith("other")]
    assert found["accuracy_after"] == accuracy_score(labels, answers)
    assert found["macro_f1_after"] == pytest.approx(f1_score(labels, answers, average="macro", zero_division=0))
    assert found["top5_after"] == top_k_accuracy_score(labels, shares, k=5)
    assert found["after"] == pytest.approx(np.exp(log_loss(labels, shares, labels=range(7))), rel=1e-4)
    kept = [row for row in read(study, "samples/merged_2.json") if row["stage"] == "after"]
    assert [(row["label"], row["predicted"]) for row in kept] == list(zip(labels.tolist(), answers.tolist()))[:10]
    assert found["accuracy_low_after"] <= found["accuracy_after"] <= found["accuracy_high_after"]


def test_a_training_learns(study):
    found = read(study, "recovery/original.json")
    assert found["validation_after"] < found["validation_before"] and found["images"] == 84
    assert read(study, "perplexity/original.json")["after"] < read(study, "perplexity/original.json")["before"]


def test_what_means_nothing_for_images_is_empty(study):
    for name in ("reviews/train", "reviews/test", "articles/train", "articles/test", "text/test_rows"):
        assert pq.read_metadata(study / f"{name}.parquet").num_rows == 0
    for variant in VARIANTS:
        assert read(study, f"sentiment/{variant}.json") == read(study, f"summarization/{variant}.json") == {}
        assert pq.read_metadata(study / f"predictions/{variant}.parquet").num_rows == 0
    page = (study / "report.md").read_text() + (study / "report.html").read_text()
    assert "Mini-DeiT-B" in page and "0.8320" in page and "Krony" not in page and "distilgpt2" not in page
    assert "ROUGE" not in page and "entiment" not in page and "accuracy" in page and "nan" not in page
    assert "dot is a right answer" in page and (study / "plots/accuracy_by_size.png").is_file()


def test_what_a_reader_of_images_takes_away_is_accuracy(study):
    found, page = read(study, "summary.json"), (study / "report.md").read_text()
    control = found["original"]["accuracy"]["accuracy_after"]
    near = {name: row for name, row in found.items() if row["accuracy"]["accuracy_after"] >= control - 0.01}
    smallest = min(near, key=lambda name: near[name]["parameters"])
    said = f"`{smallest}`, accuracy {near[smallest]['accuracy']['accuracy_after']:.3f}"
    assert f"**Control: {control:.3f}** accuracy of `original`" in page
    assert f"one point of the control: {'none' if smallest == 'original' else said}" in re.sub(r"\d+%.*?: ", "", page)


def test_names_of_labels_fit_over_an_image():
    names = SimpleNamespace(label_names=["tench, Tinca tinca", "great white shark", "hammerheads", "a b " * 9])
    assert [answers._named(names, label) for label in range(5)] == [
        "tench", "great\nwhite…", "hammerhea…", "a b a b a\nb a b a b…", "4"
    ]  # fmt: skip
    assert [answers._named(names, label, lines=1) for label in (0, 1)] == ["tench", "great whi…"]


def test_what_stands_beside_a_mean_over_seeds_is_one(study, tmp_path, monkeypatch):
    """Here the second seed's model is that before recovery."""
    monkeypatch.chdir(study)
    name = VARIANTS[-1]
    one = read(study, f"perplexity/{name}.json")
    shutil.copytree(study / f"finetuned/{name}", tmp_path / "tuned")
    shutil.copytree(study / f"surgery/{name}", tmp_path / "tuned/seeds/1")
    test = Path("text/test.parquet")
    perplexity.main(
        "tiny", name, Path(f"surgery/{name}"), tmp_path / "tuned", test, Path("text/test_rows.parquet"),
        Path("text/other.parquet"), tmp_path / "two.json", tmp_path / "losses.parquet",
    )  # fmt: skip
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["seeds"] == 2 and two["after"] == pytest.approx((one["before"] + one["after"]) / 2)
    for key in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "top5"):
        assert two[f"{key}_after"] == pytest.approx((one[f"{key}_before"] + one[f"{key}_after"]) / 2)
        assert f"{key}_after_spread" in two and f"{key}_after_spread" not in one


def test_pixels_are_exact_from_the_source_to_the_table(study):
    """Decoded, the first image is the pattern with its noise, whatever has been stored in between."""
    import io

    from PIL import Image

    rng = np.random.default_rng
    patterns, noise = rng(0).integers(0, 256, (7, 12, 12, 3)), rng([0, 1]).integers(-96, 97, (12, 12, 3))
    images = table.read(study / "text/train.parquet", 1)
    pixels = np.asarray(Image.open(io.BytesIO(images.files[0])))
    np.testing.assert_array_equal(pixels, np.clip(patterns[0] + noise, 0, 255))


def test_windows_pairs_and_permutations_never_cross_a_stage(study):
    """Of swin: its FFNs have other sizes there. A vit has one stage."""
    stages = [range(2), range(2, 5)] if "borders" in read(study, "provenance.json") else [range(5)]
    inside = {(a, b) for stage in stages for a in stage for b in stage}
    for variant in VARIANTS:
        found = read(study, f"windows/{variant}.json")
        windows = [(group[0], group[-1]) for group in found["groups"]]
        windows += [tuple(window) for candidate in found["candidates"] for window in candidate["windows"]]
        assert set(windows) <= inside
    permutations = np.load(study / "permutations.npz")
    assert {tuple(map(int, name.rsplit(".", 1)[1].split("-"))) for name in permutations} <= inside
    for path in (study / "correlations/pre_activation").iterdir():
        others = {int(name[6:]) for name in read_tensors(path) if name.startswith("layer_")}
        assert {(int(path.stem[6:]), other) for other in others} <= inside


def test_images_a_second_are_measured_at_every_batch_size(study):
    found = read(study, "latency/compressed_2.json")
    assert found["images_per_second_4"] == pytest.approx(4000 / found["ms_4"]) and found["speedup"] > 0
    assert {"images_per_second_1", "original_images_per_second_1"} <= found.keys()


def test_the_speed_up_is_that_of_turns_at_the_largest_batch(study, monkeypatch):
    turns = {2: ([0.3, 0.6, 0.9], [0.1, 0.2, 0.3]), 4: ([0.2, 0.8, 9.0], [0.1, 0.2, 6.0])}
    monkeypatch.setattr(timing, "passes", lambda models, batch, *_: dict(zip(models, turns[len(batch)])))
    section = SimpleNamespace(batch_sizes=[4, 2], warmup=0, repeats=3)
    models = {"original": None, "variant": None}
    found = ImageClassification.time(models, study / "text/test.parquet", section, "cpu")
    assert found["speedup"] == pytest.approx(2.0)  # of 2, 4 and 1.5; the ratio of medians would be 4
    assert found["original_ms_4"] == pytest.approx(800) and found["images_per_second_2"] == pytest.approx(10)


def test_calibration_is_known_by_its_images(study):
    import hashlib

    found = read(study, "calibration.json")
    files = table.read(study / "text/train.parquet", found["images"]).files
    assert found["sha256"] == hashlib.sha256(b"".join(files)).hexdigest()
    assert found["images"] * found["tokens_per_image"] >= found["moment_tokens"]
