"""Every stage by hand, in order, on a tiny model of each family read from local files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from closure import ROOT
from ruamel.yaml import YAML
from scipy.optimize import linear_sum_assignment
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

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
from stages.core.forms import checkpoint
from stages.core.process.artifacts import read_tensors
from stages.core.process.errors import UserError
from stages.core.text import corpus
from stages.core.training import recovery

LINES = [
    f"The {a} {b} met the {c} by the river." for a in ("old", "young") for b in ("fox", "owl") for c in ("cat", "hen")
]
VARIANTS = ("original", "softshare", "merged_4", "compressed_4", "dropped", "svd_weighted", "pruned", "rival")


def settings() -> dict:
    """params.yaml with one profile of seconds, on local files, and a variant of every kind."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    values["profile"] = "tiny"
    values["profiles"] = {"tiny": values["profiles"]["small"]}
    files = {split: f"{split}.txt" for split in ("train", "validation", "test")}
    values["profiles"]["tiny"] |= {
        "runtime": {"device": "cpu", "threads": 1},
        "base": {"model": "source"},
        "prepare": {
            "source": {"kind": "dataset", "path": "text", "data_files": files} | {s: s for s in files},
            "other": {
                "source": {"kind": "dataset", "path": "text", "data_files": {"rest": "other.txt"}, "test": "rest"}
            },
        },
        "extract": {
            "sites": ["pre_activation", "post_activation"],
            "max_tokens": 200,
            "moment_tokens": 300,
            "sequence_length": 16,
            "batch_size": 4,
        },
        "search": {"max_tokens": 128, "context": 32, "batch_size": 2},
        "perplexity": {"context": 32, "stride": 16, "batch_size": 2, "max_tokens": 200}
        | {"seed_protocol": {"rows": 4, "length": 32, "batch_size": 3}},
        "latency": {"prompt_tokens": 8, "new_tokens": 2, "warmup": 0, "repeats": 2}
        | {"seed_protocol": {"prompt_tokens": 4, "length": 12, "repeats": 2}},
        "articles": {
            "source": {"kind": "dataset", "path": "parquet", "data_files": {"pairs": "pairs.parquet"}}
            | {"train": "pairs[:4]", "test": "pairs[4:]"}
        },
    }
    values["profiles"]["tiny"]["finetune"] |= {"max_tokens": 512, "sequence_length": 32}
    values["profiles"]["tiny"]["reviews"] |= {
        "source": {"kind": "reviews", "seed": 0, "train": 16, "test": 8}, "max_tokens": 64,
    }  # fmt: skip
    values["profiles"]["tiny"]["sentiment"] |= {"seeds": [0, 1], "train": "deltas"}
    values["profiles"]["tiny"]["summarize"] |= {
        "articles": 3,
        "context": 60,
        "new_tokens": 8,
        "seed_protocol": {"article_tokens": 12, "new_tokens": 4},
    }
    values["profiles"]["tiny"]["summarize"]["training"] |= {"seeds": [0, 1]}
    values["profiles"]["tiny"]["generate"] |= {"prompts": ["The old"], "new_tokens": 3}
    values["variants"]["softshare"]["windows"] = {"choose": "best", "sizes": [4]}
    values["variants"]["softshare"]["finetune"] = {"train": "deltas", "frobenius": 1e-4, "distill": None}
    values["variants"]["rival"] = {
        "windows": {"choose": "none"},
        "surgery": {"method": "external", "model": "rival"},
        "finetune": {"distill": None},
    }
    values["variants"] = {name: values["variants"][name] for name in VARIANTS}
    return values


def write_settings(values: dict) -> None:
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(values, file)


def for_variant(variant: str) -> None:
    """The chain of stages of one variant."""
    here = {"profile": "tiny", "variant": variant}
    shared, tuned = Path(f"surgery/{variant}"), Path(f"finetuned/{variant}")
    windows, known = Path(f"windows/{variant}.json"), (Path("permutations.npz"), Path("moments"))
    search.main(
        *here.values(), Path("model"), Path("provenance.json"), Path("text/validation.parquet"), *known, windows
    )
    surgery.main(
        *here.values(), Path("model"), Path("tokenizer"), windows, *known, shared, Path(f"sizes/{variant}.json")
    )
    finetune.main(
        **here,
        original=Path("model"),
        control=Path("control"),
        model=shared,
        tokens=Path("text/train.parquet"),
        validation=Path("text/validation.parquet"),
        unfinished=Path("unfinished"),
        out=tuned,
        curve=Path(f"training/{variant}.csv"),
        history=Path(f"recovery/{variant}.json"),
    )
    sentiment.main(
        **here,
        model=tuned,
        train=Path("reviews/train.parquet"),
        test=Path("reviews/test.parquet"),
        out=Path(f"sentiment/{variant}.json"),
        predictions=Path(f"predictions/{variant}.parquet"),
    )
    summarize.main(
        **here,
        model=tuned,
        tokenizer=Path("tokenizer"),
        train_pairs=Path("articles/train.parquet"),
        test_pairs=Path("articles/test.parquet"),
        out=Path(f"summarization/{variant}.json"),
        predictions=Path(f"predictions/summarization/{variant}.parquet"),
    )
    both, test = {"before": shared, "after": tuned}, Path("text/test.parquet")
    text = {"tokens": test, "rows": Path("text/test_rows.parquet"), "other": Path("text/other.parquet")}
    perplexity.main(
        **here, **both, **text, out=Path(f"perplexity/{variant}.json"),
        predictions=Path(f"losses/{variant}.parquet"),
    )  # fmt: skip
    generate.main(
        **here, **both, tokenizer=Path("tokenizer"), tokens=Path("text/test.parquet"),
        out=Path(f"samples/{variant}.json"),
    )  # fmt: skip
    latency.main(**here, original=Path("model"), model=tuned, tokens=test, out=Path(f"latency/{variant}.json"))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def study(request, tmp_path_factory):
    """A folder in which every stage has run on a tiny model of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pieces = ByteLevelBPETokenizer()
        pieces.train_from_iterator(LINES, vocab_size=300, special_tokens=["<end>"], show_progress=False)
        PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, eos_token="<end>").save_pretrained("source")
        tiny.model(request.param, vocab_size=300).save_pretrained("source")
        tiny.model(request.param, vocab_size=300, seed=1).save_pretrained("rival")
        for split in ("train", "validation", "test"):
            Path(f"{split}.txt").write_text("\n".join(LINES * 20))
        Path("other.txt").write_text("\n".join([LINES[0], *(f"{line} {line[::-1]}" for line in LINES)]))
        pairs = {"article": [" ".join(LINES)] * 8, "highlights": LINES}
        pq.write_table(pa.table(pairs), "pairs.parquet")
        write_settings(settings())
        base.main("tiny", Path("model"), Path("tokenizer"), Path("provenance.json"))
        prepare.main("tiny", Path("no-lexicon"), Path("tokenizer"), Path("text"))
        data = ROOT / "data"
        reviews.main("tiny", data / "lexicon.yaml", data / "reviews.yaml", Path("tokenizer"), Path("reviews"))
        articles.main("tiny", Path("no-lexicon"), Path("no-summaries"), Path("articles"))
        text = Path("text/train.parquet")
        extract.main("tiny", Path("model"), text, Path("activations"), Path("moments"), Path("calibration.json"))
        correlate.main("tiny", Path("activations"), Path("correlations"))
        align.main(
            "tiny",
            Path("model"),
            Path("moments"),
            Path("correlations"),
            Path("permutations.npz"),
            Path("alignment.json"),
        )
        control.main("tiny", Path("model"), text, Path("text/validation.parquet"), Path("unfinished"), Path("control"))
        for variant in VARIANTS:
            for_variant(variant)
        files = {name: Path(f"{name}.json") for name in ("provenance", "calibration", "alignment", "summary")}
        folders = (
            "windows", "sizes", "recovery", "training", "perplexity", "losses", "latency", "sentiment", "summarization",
            "samples", "variants", "points", "plots",
        )  # fmt: skip
        pages = {"report": Path("report.md"), "texts": Path("samples.md"), "html": Path("report.html")}
        given = {"literature": data / "published.yaml", "templates": ROOT / "templates"}
        given |= {"overlap": Path("text/overlap.json"), "tokens": Path("text/test.parquet")}
        report.main(profile="tiny", **files, **{name: Path(name) for name in folders}, **pages, **given)
        yield folder


def test_rows_that_are_in_two_splits_are_counted(study):
    found = json.loads((study / "text/overlap.json").read_text())
    other = found.pop("other")
    assert (other["rows"], other["shared_rows"]) == (len(LINES) + 1, 1)
    assert found.keys() == {"validation", "test"}
    assert all(split["shared_rows"] == split["rows"] == 20 * len(LINES) for split in found.values())


def test_snapshot_is_the_source(study):
    source, snapshot = (read_tensors(study / name / "model.safetensors") for name in ("source", "model"))
    assert source.keys() == snapshot.keys() and all(torch.equal(source[key], snapshot[key]) for key in source)
    assert len(json.loads((study / "provenance.json").read_text())["sha256"]) == 64


def test_tokens_decode_to_the_text(study):
    ids = pq.read_table(study / "text/test.parquet")["token"].to_pylist()
    words = PreTrainedTokenizerFast.from_pretrained(study / "tokenizer")
    assert words.decode(ids) == "\n\n".join(LINES * 20)


def test_activations_hold_every_layer_and_exactly_the_tokens_asked_for(study):
    table = pq.read_table(study / "activations/pre_activation.parquet")
    assert table.num_rows == 200 == pq.read_metadata(study / "activations/post_activation.parquet").num_rows
    assert table.column_names == [f"layer_{layer:02d}" for layer in range(5)]


def test_moments_are_those_of_the_ffns_inputs(study):
    """Over more tokens than the activations, and all of them."""
    from transformers import AutoModelForCausalLM

    model, inputs = AutoModelForCausalLM.from_pretrained(study / "source").eval(), []
    block = tiny.view(model).blocks[1]
    block.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    ids = torch.tensor(pq.read_table(study / "text/train.parquet")["token"].to_pylist()[:304])
    with torch.no_grad():
        model(ids.view(-1, 16))
    rows = torch.cat(inputs)[:300].double()
    found = read_tensors(study / "moments/layer_01.safetensors")
    torch.testing.assert_close(found["input.mean"], rows.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["input.second"], rows.T @ rows / 300, atol=1e-4, rtol=0)
    assert found["hidden.second"].shape[0] == found["hidden.mean"].shape[0] > rows.shape[1]


def test_correlations_and_permutations_agree_with_numpy(study):
    table = pq.read_table(study / "activations/pre_activation.parquet")
    first, third = (np.stack(table[name].to_numpy()).astype(np.float64) for name in ("layer_00", "layer_02"))
    expected = np.corrcoef(first.T, third.T)[: first.shape[1], first.shape[1] :]
    found = read_tensors(study / "correlations/pre_activation/layer_00.safetensors")["layer_02"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    permutation = np.load(study / "permutations.npz")["pre_activation.first.0-2"]
    assert sorted(permutation) == list(range(len(permutation)))
    quality = json.loads((study / "alignment.json").read_text())["sites"]["pre_activation"]["pairs"]["0-2"]
    assert quality["matched"] == pytest.approx(expected[np.arange(len(permutation)), permutation].mean(), abs=1e-6)
    assert quality["matched"] > quality["unmatched"]


def test_chance_is_what_neighbours_reach_at_other_tokens(study):
    table = pq.read_table(study / "activations/pre_activation.parquet")
    rows = [np.stack(column.to_numpy()).astype(np.float64) for column in table.columns]
    shift = min(1000, len(rows[0]) // 2)
    reached = []
    for one, other in zip(rows, rows[1:]):
        correlation = np.corrcoef(one.T, np.roll(other, shift, 0).T)[: one.shape[1], one.shape[1] :]
        pairs = linear_sum_assignment(correlation, maximize=True)
        reached.append(correlation[pairs].mean())
    found = json.loads((study / "alignment.json").read_text())["sites"]["pre_activation"]["null"]
    assert found == pytest.approx(np.mean(reached), abs=1e-5)


def test_every_way_to_align_has_its_permutations(study):
    found = np.load(study / "permutations.npz")
    ways = [
        f"{way}.{reference}"
        for way in ("pre_activation", "post_activation", "cost")
        for reference in ("first", "centre")
    ]
    pairs = [f"{first}-{other}" for first in range(5) for other in range(first + 1, 5)]
    assert set(found) == {f"{way}.{pair}" for way in ways for pair in pairs}
    for name, order in found.items():
        assert sorted(np.where(order < 0, ~order, order)) == list(range(len(order)))
        assert (order >= 0).all() or name.startswith("cost")  # only there a neuron may change its sign


def test_search_scores_every_window_and_takes_the_best(study):
    found = json.loads((study / "windows/softshare.json").read_text())
    assert [candidate["windows"] for candidate in found["candidates"]] == [[[0, 3]], [[1, 4]]]
    best = min(found["candidates"], key=lambda candidate: candidate["perplexity"])
    ((first, last),) = best["windows"]
    assert found["groups"] == [list(range(first, last + 1))]
    assert json.loads((study / "windows/merged_4.json").read_text())["groups"] == [[0, 1, 2, 3]]


def test_only_deltas_move_where_only_deltas_train(study):
    before, after = (read_tensors(study / f"{name}/softshare/model.safetensors") for name in ("surgery", "finetuned"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith((".A", ".B"))}


def test_the_recovered_original_is_the_control(study):
    pairs = {"model/model.safetensors": "finetuned/original/model.safetensors"}
    pairs |= {"curve.csv": "training/original.csv", "course.json": "recovery/original.json"}
    for there, here in pairs.items():
        assert (study / "control" / there).read_bytes() == (study / here).read_bytes()
    before, after = (read_tensors(study / f"{name}/model.safetensors") for name in ("model", "control/model"))
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_the_control_s_copy_is_made_without_torch(study):
    """And so without opening a model."""
    paths = ("model", "control", "surgery/original", "text/train.parquet", "text/validation.parquet", "unfinished")
    code = (
        "import sys; from pathlib import Path; from stages import finetune\n"
        f"finetune.main('tiny', 'original', *map(Path, {(*paths, 'copy', 'copy.csv', 'copy.json')}))\n"
        "assert not {'torch', 'transformers', 'pyarrow', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=study, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (study / "copy/model.safetensors").read_bytes() == (study / "control/model/model.safetensors").read_bytes()


def measure(out: str, **paths: Path) -> None:
    """Stage `perplexity` of softshare, its figures and losses as `out`."""
    kept = {"out": Path(f"{out}.json"), "predictions": Path(f"{out}.parquet")}
    perplexity.main("tiny", "softshare", **paths, **kept)


def test_perplexity_opens_each_checkpoint_once(study, monkeypatch):
    opened, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder: opened.append(str(folder)) or load(folder))
    both = {"before": Path("surgery/softshare"), "after": Path("finetuned/softshare")}
    text = {name: Path(f"text/{file}.parquet") for name, file in (("tokens", "test"), ("rows", "test_rows"))}
    measure("again", **both, **text, other=Path("text/other.parquet"))
    assert sorted(opened) == ["finetuned/softshare", "surgery/softshare"]
    assert Path("again.json").read_bytes() == Path("perplexity/softshare.json").read_bytes()
    # A start that was kept is the same checkpoint: it is measured once.
    opened.clear()
    shutil.copytree("finetuned/softshare", "start")
    measure("kept", **both | {"before": Path("start")}, **text, other=Path("text/other.parquet"))
    kept = json.loads(Path("kept.json").read_text())
    assert opened == ["finetuned/softshare"] and kept["before"] == kept["after"]
    assert kept["other_before"] == kept["other_after"] and kept["seed_before"] == kept["seed_after"]


def test_another_text_is_scored_as_the_test_split_is_and_one_that_is_not_there_not_at_all(study):
    both = {"before": Path("surgery/softshare"), "after": Path("finetuned/softshare")}
    found = json.loads(Path("perplexity/softshare.json").read_text())
    texts = {"tokens": Path("text/other.parquet"), "rows": Path("text/test_rows.parquet")}
    measure("same", **both, **texts, other=Path("text/other.parquet"))
    same = json.loads(Path("same.json").read_text())
    for when in ("before", "after"):
        assert same[when] == same[f"other_{when}"] == found[f"other_{when}"] != found[when]
    assert found["other_tokens"] == same["tokens"]
    corpus.write_tokens(Path("nothing.parquet"), [])
    texts["tokens"] = Path("text/test.parquet")
    measure("without", **both, **texts, other=Path("nothing.parquet"))
    assert json.loads(Path("without.json").read_text()) == {
        key: value for key, value in found.items() if not key.startswith("other")
    }


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, None),
        ({"distill": {"logits": 0.5}, "teacher": "original"}, "model"),
        ({"distill": {"logits": 0.5}, "teacher": "control"}, "control/model"),
        ({"warm_start": 0.5, "teacher": "control"}, "control/model"),
    ],
)
def test_the_teacher_is_who_params_name(study, monkeypatch, changes, asked):
    values, teachers = settings(), []
    values["variants"]["merged_4"]["finetune"] = {"distill": None} | changes

    def seen(model, sharing, teacher, *rest, **options):
        teachers.append(teacher)
        raise InterruptedError

    monkeypatch.setattr(recovery, "recover", seen)
    try:
        write_settings(values)
        paths = ("model", "control", "surgery/merged_4", "text/train.parquet", "text/validation.parquet")
        with pytest.raises(InterruptedError):
            finetune.main("tiny", "merged_4", *map(Path, (*paths, "unfinished", "out", "curve", "course")))
    finally:
        write_settings(settings())
    if asked is None:
        assert teachers == [None]
    else:
        stored, found = read_tensors(study / asked / "model.safetensors"), dict(teachers[0].model.named_parameters())
        assert stored.keys() >= found.keys() and all(torch.equal(found[name], stored[name]) for name in found)


def test_another_checkpoint_is_measured_as_it_is(study):
    weights = read_tensors(study / "rival/model.safetensors")
    kept = read_tensors(study / "surgery/rival/model.safetensors")
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in kept)


def test_another_checkpoint_that_is_not_there_is_named_by_its_key(study, monkeypatch):
    monkeypatch.chdir(study)
    values = settings()
    values["variants"]["rival"]["surgery"]["model"] = "./nowhere"
    try:
        write_settings(values)
        paths = ("model", "tokenizer", "windows/rival.json", "permutations.npz", "moments", "out", "size.json")
        with pytest.raises(UserError, match="variants.rival.surgery.model = ./nowhere: there is no such folder"):
            surgery.main("tiny", "rival", *map(Path, paths))
    finally:
        write_settings(settings())


def test_baselines_store_no_more_than_softshare_even_after_training(study):
    sizes = {name: json.loads((study / f"sizes/{name}.json").read_text())["parameters"] for name in VARIANTS}
    assert all(sizes[name] <= sizes["softshare"] < sizes["original"] for name in ("dropped", "svd_weighted", "pruned"))
    tuned = tiny.count(tiny.load(study / "finetuned/pruned")[0])
    assert tuned["parameters"] == sizes["pruned"]


def test_original_before_tuning_has_the_models_own_perplexity(study):
    """Against the sliding window of the transformers documentation, with labels and the library's own loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(study / "source").eval()
    ids = torch.tensor(pq.read_table(study / "text/test.parquet")["token"].to_pylist()[:200])[None]
    total, count, scored = 0.0, 0, 0
    for begin in range(0, ids.shape[1], 16):
        end = min(begin + 32, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : scored - begin] = -100
        targets = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(ids[:, begin:end], labels=labels).loss.item() * targets
        count, scored = count + targets, end
        if end == ids.shape[1]:
            break
    ours = json.loads((study / "perplexity/original.json").read_text())["before"]
    assert ours == pytest.approx(np.exp(total / count), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sentiment_can_be_recounted_from_its_predictions(study, variant):
    found = json.loads((study / f"sentiment/{variant}.json").read_text())
    rows, texts = (pq.read_table(study / f"{name}.parquet") for name in (f"predictions/{variant}", "reviews/test"))
    assert rows["label"].to_pylist() == texts["label"].to_pylist()
    right = [a == b for a, b in zip(rows["label"].to_pylist(), rows["predicted"].to_pylist())]
    assert found["accuracy"] == sum(right) / len(right) and found["seeds"] == 2 and found["majority"] == 0.5


def test_rouge_is_the_reference_s_on_the_kept_predictions_and_seeds_have_a_spread(study):
    from rouge_score.rouge_scorer import RougeScorer

    found = json.loads((study / "summarization/softshare.json").read_text())
    rows = pq.read_table(study / "predictions/summarization/softshare.parquet").to_pylist()
    assert found["articles"] == len(rows) == 3 and found["seeds"] == 2
    assert [row["reference"] for row in rows] == LINES[4:7]
    scorer = RougeScorer(["rouge2"], use_stemmer=True)
    lead = np.mean([scorer.score(row["reference"], row["lead3"])["rouge2"].fmeasure for row in rows])
    assert found["lead3_rouge2"] == pytest.approx(lead, abs=1e-12)
    assert not any(row["prediction"].startswith("The old fox met the cat by the river. The") for row in rows)
    assert found["seed_rouge1"] > 0 and found["rouge1_spread"] >= 0


def test_the_seeds_perplexity_counts_padding_that_transformers_counts(study):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(study / "source").eval()
    rows = pq.read_table(study / "text/test_rows.parquet")["tokens"].to_pylist()[:4]
    pad = model.config.eos_token_id or 0
    ids = torch.tensor([row[:32] + [pad] * (32 - len(row)) for row in rows])
    seen = torch.tensor([[1] * len(row[:32]) + [0] * (32 - len(row)) for row in rows])
    with torch.no_grad():
        loss = model(ids, attention_mask=seen, labels=ids).loss.item()
    found = json.loads((study / "perplexity/original.json").read_text())
    assert found["seed_before"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert json.loads((study / "latency/original.json").read_text())["seed_ms"] > 0


def test_samples_do_not_repeat_the_prompt(study):
    rows = json.loads((study / "samples/original.json").read_text())
    assert {(row["stage"], row["way"]) for row in rows} == {
        (s, w) for s in ("before", "after") for w in ("greedy", "sampled")
    }
    assert not any(row["continuation"].startswith("The old") for row in rows)


def test_a_window_longer_than_the_model_names_its_depth(study):
    values = settings()
    values["variants"]["merged_4"]["windows"]["size"] = 6
    write_settings(values)
    try:
        with pytest.raises(UserError, match="windows.size = 6: this model has 5 layers"):
            for_variant("merged_4")
    finally:
        write_settings(settings())


def test_more_tokens_than_the_text_has_is_refused(study):
    values = settings()
    values["profiles"]["tiny"]["extract"]["max_tokens"] = 10**6
    write_settings(values)
    try:
        with pytest.raises(UserError, match="extract.max_tokens = 1000000"):
            extract.main("tiny", Path("model"), Path("text/train.parquet"), *map(Path, ("a", "m", "c.json")))
    finally:
        write_settings(settings())


def test_calibration_is_known_by_the_hash_of_its_tokens(study):
    import hashlib

    ids = pq.read_table(study / "text/train.parquet")["token"].to_numpy()[:304].astype("<i8")
    assert json.loads((study / "calibration.json").read_text()) == {
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(), "activation_tokens": 200, "moment_tokens": 300,
        "sequence_length": 16,
    }  # fmt: skip


def test_every_figure_says_where_it_was_taken(study):
    for stage in ("recovery", "perplexity", "latency", "sentiment", "summarization"):
        place = json.loads((study / stage / "softshare.json").read_text())["environment"]
        assert place["threads"] == 1 and place["precision"] == "float32" and place["device"] and place["torch"]


def test_the_report_is_about_this_run(study):
    text = (study / "report.html").read_text()
    assert json.loads((study / "calibration.json").read_text())["sha256"] in text
    assert all(f'<th scope="row">{name}</th>' in text for name in VARIANTS)
    row = json.loads((study / "summary.json").read_text())["softshare"]
    assert row["sentiment"]["accuracy"] == json.loads((study / "sentiment/softshare.json").read_text())["accuracy"]
