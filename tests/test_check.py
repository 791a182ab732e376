"""What can be known before anything runs: a model's shape, what params.yaml may ask of it, and what it will take."""

import copy
import io
import json
import random
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
import tiny
import torch
from closure import ROOT
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from ruamel.yaml import YAML
from test_recovery import RECIPE
from transformers import PreTrainedTokenizerFast

from stages.commands import amounts, check, named_files
from stages.core.architecture import opening, rules, shape, targets, windows
from stages.core.calibration import moments
from stages.core.forms import checkpoint
from stages.core.images import digits
from stages.core.process import hub
from stages.core.process.errors import UserError
from stages.core.running import counted, estimates, gpus, quantities
from stages.core.settings import params, splits
from stages.core.settings.recoveries import Recovery
from stages.core.settings.texts import LabelledDataset
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Forms
from stages.core.tasks import choice
from stages.core.text import corpus, sources
from stages.core.training import recovery, resuming

DOCUMENT = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
SMALL, FIVE = "profiles.small", shape.of_model(tiny.model("gpt2"))
EMBEDDED = shape.of_folder(ROOT / "data/model")
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
LLAMA = {"model_type": "llama", "vocab_size": 5, "tie_word_embeddings": False} | {
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def changed(changes):
    """What params.yaml of the repository says, some values changed by their dotted path."""
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = document
        for key in parents:
            part = part.setdefault(key, {})
        part[last] = copy.deepcopy(value)
    return document


def write(folder, **changes):
    """params.yaml of the repository in `folder`, some values changed by their dotted path."""
    text = io.StringIO()
    YAML(typ="safe").dump(changed(changes), text)
    (folder / "params.yaml").write_text(text.getvalue())
    return params.load(folder / "params.yaml")


def config(folder, values):
    """A folder with this config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


# Shapes


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"attention_bias": True}], ids=str)
@tiny.every_family
def test_a_shape_counts_what_the_model_has(name, options, tmp_path):
    model = tiny.model(name, **options)
    model.save_pretrained(tmp_path)
    found, family = shape.of_folder(tmp_path), tiny.family(model)
    assert found == shape.of_model(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.block == sum(p.numel() for p in tiny.view(model).blocks[2].parameters())
    weights = tiny.view(model).read(0)
    assert found.matrices == {role: tuple(weights[f"w_{role}"].shape) for role in family.matrices}
    assert (found.layers, found.positions, found.vocabulary) == (tiny.LAYERS, tiny.POSITIONS, tiny.VOCABULARY)


def test_a_config_of_the_hub_says_little_and_is_understood(tmp_path):
    found = shape.of_source(str(config(tmp_path / "gpt2", GPT2)))
    assert found.hidden == 4 * 768 and found.tied and found.parameters == 124_439_808
    assert "12 layers" in str(found) and "124,439,808 parameters" in str(found)


@pytest.mark.parametrize(
    "values, message",
    [
        ("{", "cannot read .*config.json"),
        ("[1]", "config.json: a mapping is needed, not list"),
        ("[" * 100_000, "cannot read .*config.json"),
        (GPT2 | {"n_layer": 10**9}, "config.json: n_layer = 1000000000: at most 1000 is allowed"),
        ({}, "config.json: model type None is not supported; supported: gpt2"),
        ({"model_type": ["gpt2"]}, "config.json: model type .* is not supported"),
        (GPT2 | {"n_layer": 0}, "config.json: n_layer = 0: a whole number from 1"),
        (GPT2 | {"n_positions": 0}, "config.json: n_positions = 0: a whole number from 1"),
        (GPT2 | {"n_embd": "768"}, "config.json: n_embd = '768': a whole number from 1"),
        (GPT2 | {"vocab_size": None}, "config.json: vocab_size = None"),
        ({key: value for key, value in LLAMA.items() if key != "intermediate_size"}, "intermediate_size = None"),
    ],
)
def test_a_config_that_is_damaged_is_named(values, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        shape.of_folder(config(tmp_path / "model", values))
    assert str(tmp_path / "model/config.json") in str(caught.value) and "\n" not in str(caught.value)


def gguf(path, **changes):
    """A GGUF file of a small llama: its head, two tensors, and a vocabulary of five tokens."""
    writer = GGUFWriter(path, "llama")
    sizes = {"block_count": 3, "context_length": 64, "embedding_length": 16, "feed_forward_length": 24}
    for key, value in (sizes | changes).items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bc", "ä", "", "<end>"])
    writer.add_token_scores([0.0] * 5)
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, torch.zeros(5, 16).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_known_by_its_head(tmp_path):
    gguf(tmp_path / "model.gguf")
    found = shape.of_source(str(tmp_path), None, "model.gguf")
    assert found == shape.of_config(LLAMA, "here")


def test_a_gguf_file_that_is_damaged_is_named(tmp_path):
    whole = gguf(tmp_path / "whole.gguf").read_bytes()
    head = len(whole) - 2 * 5 * 16 * 4 - 64
    path = tmp_path / "model.gguf"
    with pytest.raises(UserError, match="whole.gguf as GGUF: damaged, .* its last 1 bytes are missing"):
        (tmp_path / "whole.gguf").write_bytes(whole[:-1])
        shape.of_gguf(tmp_path / "whole.gguf")
    for text in (b"", b"GGUF", b"PK" + whole[2:], *(whole[:end] for end in range(30, head, 37))):
        path.write_bytes(text)
        with pytest.raises(UserError, match=re.escape(str(path))):
            shape.of_gguf(path)
    with pytest.raises(UserError, match="nowhere.gguf"):
        shape.of_source(str(tmp_path), None, "nowhere.gguf")
    GGUFWriter(path, "mamba").write_header_to_file()
    writer = GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="model.gguf: model type 'mamba' is not supported"):
        shape.of_gguf(path)


def test_a_model_of_the_hub_is_looked_up_in_its_cache(tmp_path, monkeypatch):
    kept = tmp_path / "models--some--model"
    config(kept / "snapshots/abc", GPT2)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert shape.of_source("some/model").positions == 1024
    assert shape.of_source("some/other") is None and shape.of_source("some/model", None, "x.gguf") is None
    with pytest.raises(UserError, match="'no/such/folder' is neither a folder nor"):
        shape.of_source("no/such/folder")


# Rules


NOTHING = FIVE.parameters - FIVE.all_ffn_matrices  # stored where nothing of the FFN matrices is left
BUDGET = {"choose": "budget", "sizes": [2, 3], "target_parameters": 0.9}
BEST = {"choose": "best", "sizes": [4]}
LIKE = "variants.svd.surgery.target_parameters"
LENGTHS = {
    "reviews.max_tokens": 65,
    "extract.sequence_length": 65,
    "search.context": 65,
    "finetune.sequence_length": 65,
    "perplexity.context": 256,
    "perplexity.seed_protocol.length": 65,
    "summarize.context": 65,
    "latency.seed_protocol.length": 65,
}
FITTING = {
    f"{SMALL}.{key}": value
    for key, value in {
        "reviews.max_tokens": 64,
        "extract.sequence_length": 64,
        "search.context": 64,
        "finetune.sequence_length": 64,
        "perplexity.context": 64,
        "perplexity.stride": 32,
        "perplexity.seed_protocol.length": 64,
        "latency.prompt_tokens": 32,
        "latency.new_tokens": 32,
        "latency.seed_protocol.length": 64,
        "summarize.context": 64,
        "summarize.seed_protocol.article_tokens": 32,
        "summarize.seed_protocol.new_tokens": 32,
        "generate.new_tokens": 63,
    }.items()
} | {
    f"variants.{kind}_{size}.windows.size": 5 for kind in ("merged", "compressed") for size in (6, 8, 10)
} | {
    f"variants.{name}.surgery.target_parameters": 0.8 for name in ("dropped", "svd", "svd_weighted", "pruned")
} | {"variants.softshare.windows": BUDGET}  # fmt: skip

RULES = [
    *((f"{SMALL}.{key}", long, rf"{SMALL}.{key} = {long}: .* at most 64 positions") for key, long in LENGTHS.items()),
    (f"{SMALL}.latency.new_tokens", 33, rf"{SMALL}.latency.prompt_tokens \+ new_tokens = 65: .* 64 positions"),
    (f"{SMALL}.generate.new_tokens", 64, rf"{SMALL}.generate.new_tokens \+ 1 for a prompt = 65: .* 64 positions"),
    (
        f"{SMALL}.summarize.seed_protocol.new_tokens",
        33,
        rf"{SMALL}.summarize.seed_protocol.article_tokens \+ new_tokens = 65: .* 64 positions",
    ),
    ("variants.merged_4.windows.size", 6, "variants.merged_4.windows.size = 6: this model has 5 layers, so 2 to 5 are"),
    (
        "variants.softshare_seed.windows.sizes",
        [2, 7],
        "variants.softshare_seed.windows.sizes = 7: this model has 5 layers, so 2 to 5 are allowed",
    ),
    (
        "variants.softshare_seed.windows",
        BEST | {"exclude_layers": [5]},
        "variants.softshare_seed.windows.exclude_layers = 5: this model has layers 0 to 4 only",
    ),
    (
        "variants.softshare_seed.windows",
        BEST | {"exclude_layers": [2]},
        r"variants.softshare_seed.windows.exclude_layers = \[2\] leaves no window of sizes = \[4\] in the 5 layers",
    ),
    (
        "variants.softshare_seed.windows",
        BEST | {"sizes": [2], "count": 3},
        r"variants.softshare_seed.windows.count = 3: at most 2 windows of sizes = \[2\] fit into the 5 layers",
    ),
    (
        "variants.softshare_seed.surgery.rank",
        33,
        "variants.softshare_seed.surgery.rank = 33: the FFN matrices of this model are 128 x 32, so at most 32 is",
    ),
    ("variants.dropped.surgery", {"method": "drop", "layers": 5}, "variants.dropped.surgery.layers = 5: .* 1 to 4 are"),
    (
        "variants.svd_weighted.surgery.basis",
        6,
        "variants.svd_weighted.surgery.basis = 6: this model has 5 layers, so 1 to 5 are allowed",
    ),
    ("variants.dropped.surgery.target_parameters", 10**9, r"variants.dropped.*= 10{9}: [\d,]+ to [\d,]+ of this"),
    (LIKE, 10, r"variants.svd.surgery.target_parameters = 10: [\d,]+ to [\d,]+ of this model's [\d,]+ parameters are"),
    (LIKE, {"size": 6, "rank": 2}, "variants.svd.surgery.target_parameters = 1 x 6 layers: .* may be 2 to 5"),
    (LIKE, {"size": 2, "rank": 2, "count": 3}, "variants.svd.surgery.target_parameters = 3 x 2 layers: .* 2 to 5"),
    (LIKE, {"size": 2, "rank": 33}, "variants.svd.surgery.target_parameters.rank = 33: .* at most 32 is"),
    (LIKE, {"size": 2, "rank": 32}, r"variants.svd.* = {size: 2, rank: 32, count: 1} is [\d,]+ parameters: "),
    ("variants.pruned.surgery.target_parameters", FIVE.parameters, r"variants.pruned.* = \d+: [\d,]+ to [\d,]+ of"),
    # What masks alone store does not pay for an entry.
    ("variants.pruned.surgery.target_parameters", NOTHING + targets.masks(FIVE), "variants.pruned.*_parameters = "),
    ("variants.mix.windows.target_parameters", NOTHING, "variants.mix.windows.target_parameters = "),
    (
        "variants.mix.windows",
        {"choose": "forms", "forms": ["share"], "sizes": [2], "target_parameters": 0.5},
        "variants.mix.windows.target_parameters = 0.5 is ",
    ),
    (
        "variants.mix.windows",
        {"choose": "forms", "forms": ["drop"], "target_parameters": 0.1},
        "variants.mix.windows.target_parameters = 0.1 is ",
    ),
    (
        "variants.softshare.windows.target_parameters",
        0.1,
        r"variants.softshare.windows.target_parameters = 0.1 is [\d,]+ parameters: [\d,]+ to [\d,]+ of .* are allowed",
    ),
]  # fmt: skip


def test_params_that_a_small_model_allows_are_allowed(tmp_path):
    assert rules.mistakes(write(tmp_path, **FITTING), "small", FIVE) == []
    assert rules.mistakes(params.load(ROOT / "params.yaml"), "small", EMBEDDED) == []


@pytest.mark.parametrize("path, value, message", RULES, ids=[f"{path}-{value}" for path, value, _ in RULES])
def test_what_the_model_does_not_have_is_one_line_with_key_value_and_allowed(path, value, message, tmp_path):
    (line,) = rules.mistakes(write(tmp_path, **(FITTING | {path: value})), "small", FIVE)
    assert re.match(message, line), line


@pytest.mark.parametrize("sizes", [[2], [5], [3, 4]])
def test_a_budget_is_allowed_exactly_where_windows_can_meet_it(sizes, tmp_path):
    """Against the search's own condition: the fewest layers that have to be saved, and a few more."""
    found = write(tmp_path, **FITTING)
    operation = found.variants["softshare"].surgery
    each, total = targets.saving(FIVE, operation.biases), FIVE.parameters
    possible = windows.savings(windows.contiguous(5, sizes), 5)
    for number in [total - saved * each + off for saved in range(6) for off in (-1, 0, 1)]:
        needed = -(-(total - number) // each)
        wanted = any(needed <= saved < needed + windows.SPARE for saved in possible) and needed >= 1
        chosen = BUDGET | {"sizes": sizes, "target_parameters": number}
        variant = Variant(
            windows=chosen, surgery=operation.model_dump(), finetune=found.variants["softshare"].finetune.model_dump()
        )
        assert (not list(rules.variant_mistakes("variants.x", variant, FIVE))) == wanted, number


def test_deltas_that_are_trained_alone_have_a_rank(tmp_path):
    found = write(tmp_path, **FITTING).variants["softshare"]
    saved, smallest = targets.saved(FIVE, "own", (0, 1)), min(map(sum, FIVE.matrices.values()))
    for number, train, wanted in [
        (0, "window", 0),
        (0, "deltas", 1),
        (smallest - 1, "deltas", 1),
        (smallest, "deltas", 0),
    ]:
        variant = Variant(
            windows=BUDGET | {"sizes": [2], "target_parameters": FIVE.parameters - 2 * saved + number},
            surgery=found.surgery.model_dump(),
            finetune={"train": train},
        )
        assert len(list(rules.variant_mistakes("variants.x", variant, FIVE))) == wanted, (number, train)


@pytest.mark.parametrize("forms", [["share", "drop"], ["share", "low_rank"], ["drop", "sparse"]])
def test_a_mixture_reaches_what_any_of_its_forms_reaches(forms, tmp_path):
    found = write(tmp_path, **FITTING).variants["mix"]

    def allowed(some, number):
        windows = {"choose": "forms", "forms": some, "sizes": [2, 3], "target_parameters": number}
        variant = found.model_copy(update={"windows": Forms(**windows)})
        return not list(rules.variant_mistakes("variants.x", variant, FIVE))

    for number in range(FIVE.parameters // 5, FIVE.parameters, FIVE.parameters // 97):
        assert allowed(forms, number) == any(allowed([form], number) for form in forms)


@given(depth=st.integers(2, 7), seed=st.integers(0, 999))
def test_windows_beside_each_other_are_all_there_are(depth, seed):
    chance = random.Random(seed)
    every = [(a, b) for a in range(depth) for b in range(a + 1, depth)]
    some = chance.sample(every, chance.randint(1, min(6, len(every))))
    apart = [
        chosen
        for bits in range(1, 2 ** len(some))
        for chosen in [[w for i, w in enumerate(some) if bits >> i & 1]]
        if all(a[1] < b[0] or b[1] < a[0] for a in chosen for b in chosen if a != b)
    ]
    assert windows.most(some) == max(map(len, apart))
    assert windows.savings(some, depth) == {windows.saved(chosen) for chosen in apart}


def test_a_rank_that_saves_nothing_is_a_warning(tmp_path):
    few, enough, many = (write(tmp_path, **{"variants.softshare_seed.surgery.rank": rank}) for rank in (76, 77, 103))
    assert rules.mistakes(many, "small", EMBEDDED) == [] == rules.warnings(few, EMBEDDED)
    (line,) = rules.warnings(enough, EMBEDDED)
    assert line.startswith("variants.softshare_seed.surgery.rank = 77: a base and the deltas of 4 layers store 262,656")
    (line,) = rules.warnings(many, EMBEDDED)
    assert line.startswith("variants.softshare_seed.surgery.rank = 103: A and B store 65,920 parameters, the 512 x 128")


def test_another_checkpoint_with_another_vocabulary_is_refused_unopened(tmp_path, monkeypatch):
    config(tmp_path / "rival", GPT2)
    config(tmp_path / "own", GPT2 | {"vocab_size": 97})
    rival = {"windows": {"choose": "none"}, "finetune": {"train": "all", "frobenius": 0.0}}
    rival["surgery"] = {"method": "external", "model": str(tmp_path / "rival")}
    found = write(tmp_path, **{"variants.rival": rival})
    (line,) = check.externals(found, shape.of_folder(tmp_path / "own"))
    assert line.startswith(f"variants.rival.surgery.model = {tmp_path / 'rival'}: it knows 50257 tokens")
    assert "97 tokens" in line
    assert check.externals(found, shape.of_folder(tmp_path / "rival")) == []
    skipped = write(tmp_path, **{"variants.rival": rival | {"skip": ["small"]}})
    assert check.externals(skipped, shape.of_folder(tmp_path / "own")) == []


def test_another_checkpoint_of_another_task_is_refused_unopened():
    digits = shape.of_folder(ROOT / "data/digits/model")
    found = list(rules.external_mistakes("surgery.model", "a/b", digits, EMBEDDED))
    assert found == [
        "surgery.model = a/b: the task of a model of type gpt2 is language, and this study's is image_classification"
    ]


def test_the_door_reads_a_config_and_no_more(tmp_path, monkeypatch):
    """A variant's checkpoint may have lost layers: only lengths are asked of it."""
    monkeypatch.chdir(tmp_path)
    model = tiny.model("gpt2")
    model.config.save_pretrained(tmp_path / "dense")
    shallow = {**model.config.to_dict(), "n_layer": 2}
    config(tmp_path / "variant", {"model_type": checkpoint.MODEL_TYPE, "sharing": {}, "dense": shallow})
    (tmp_path / "params.yaml").write_text("profile: 3")
    with pytest.raises(UserError, match="params.yaml: profile = 3"):  # a mistake of the file itself comes first
        rules.validate("small", Path("nowhere"))
    write(tmp_path, **FITTING)
    config(tmp_path / "shallow", shallow)
    rules.validate("small", Path("dense"))
    write(tmp_path, **(FITTING | {"variants.merged_4.windows.size": 6, "variants.merged_6.windows.size": 6}))
    for folder in ("dense", "variant", "shallow"):
        rules.validate_variant("small", Path(folder))
    with pytest.raises(UserError) as caught:
        rules.validate("small", Path("dense"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all(line.strip().startswith("params.yaml: variants.merged_") for line in lines)
    write(tmp_path, **(FITTING | {f"{SMALL}.search.context": 65}))
    for door in (rules.validate, rules.validate_variant):
        with pytest.raises(UserError, match=f"params.yaml: {SMALL}.search.context = 65: .* 64 positions"):
            door("small", Path("dense"))
    with pytest.raises(UserError, match=f"params.yaml: {SMALL}.search.context = 65: .* 64 positions"):
        rules.validate_variant("small", Path("variant"))


# Splits


bounds = st.none() | st.integers(-20, 20).map(str) | st.integers(-99, 100).map("{}%".format)
slices = st.builds(
    lambda name, begin, end: f"{name}[{begin or ''}:{end or ''}]", st.sampled_from(["train", "test"]), bounds, bounds
)


def rows(split, count=10_000):
    """What `datasets` itself takes for a split of sets of `count` rows."""
    from datasets import ReadInstruction

    found = ReadInstruction.from_spec(split).to_absolute({"train": count, "test": count})
    return {(part.splitname, row) for part in found for row in range(part.from_, part.to)}


@given(one=st.lists(slices, min_size=1, max_size=2), other=slices)
def test_splits_overlap_where_datasets_takes_a_row_twice(one, other):
    one = "+".join(one)
    try:
        found = splits.overlap(one, other)
    except ValueError as error:
        empty = re.match("'(.*)' has no rows", str(error)).group(1)
        assert any(not rows(piece) for piece in empty.split("+"))
    else:
        assert found == bool(rows(one) & rows(other))


@pytest.mark.parametrize(
    "one, other, wanted",
    [
        ("train", "train[:50%]", True),
        ("validation[:60%]", "validation[50%:]", True),
        ("validation[:50%]", "validation[50%:]", False),
        ("train[:100]", "train[100:]", False),
        ("train[:100]", "train[-100:]", False),
        ("train[100:]", "train[:1%]", True),
        ("train[:10%]+test", "test[99%:]", True),
        ("train", "test", False),
    ],
)
def test_overlap(one, other, wanted):
    assert splits.overlap(one, other) == splits.overlap(other, one) == wanted


def test_splits_are_the_same_where_they_name_the_same_file():
    with pytest.raises(ValueError, match=r"train = a\[:9\] and test = b overlap"):
        splits.check({"train": "a[:9]", "validation": None, "test": "b"}, {"a": "x.parquet", "b": "x.parquet"})
    splits.check({"train": "a", "test": "b"}, {"a": "x.parquet", "b": "y.parquet"})


@pytest.mark.parametrize("split", ["train[", "train[:5:2]", "train[a:b]", "", "train+", "train[5:5]", "train[60%:40%]"])
def test_what_is_no_split_or_has_no_row_is_refused(split):
    with pytest.raises(ValueError, match="is no split|has no rows"):
        splits.parts(split)


def test_rows_of_a_slice_are_counted_where_it_says_them():
    assert [splits.most_rows(s) for s in ("a[:20]", "a[5:20]+b[-3:]", "a", "a[:5%]")] == [20, 18, None, None]


# Estimates


def test_the_disk_of_the_embedded_model_is_what_its_tensors_take(tmp_path):
    found = params.load(ROOT / "params.yaml")
    costs = estimates.estimate(found.profiles["small"], found.variants, EMBEDDED)
    spec = found.profiles["small"].extract
    weights = (ROOT / "data/model/model.safetensors").stat().st_size
    streams = {site: moments.MomentStream() for site in (128, 512)}
    for width, stream in streams.items():
        stream.update(torch.ones(2, width))
    tensors = moments.to_tensors({str(width): stream.moments() for width, stream in streams.items()})
    kept = 12 * sum(tensor.nbytes for tensor in tensors.values())
    table = len(spec.sites) * 12 * torch.empty(spec.max_tokens, 512).nbytes
    near = [(first, other) for first in range(12) for other in range(first + 1, min(first + 10, 12))]
    matrices = len(spec.sites) * len(near) * torch.empty(512, 512).nbytes
    for stage, expected in {"base": weights, "extract": kept + table, "correlate": matrices}.items():
        assert expected / 2 < costs[stage].disk < 2 * expected
        assert costs[stage].disk == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["merged_4", "compressed_4", "dropped", "svd", "original"])
def test_a_checkpoint_holds_as_many_numbers_as_estimated(name, tmp_path):
    variant = write(tmp_path, **FITTING).variants[name]
    model = tiny.model("gpt2")
    groups = windows.blocks(5, variant.windows.size) if name.endswith("4") else []
    changed, sharing = tiny.operate(model, groups, tiny.calibration(model), variant.surgery)
    assert quantities.stored(variant, FIVE) == pytest.approx(tiny.count(changed)["parameters"], rel=0.03)


@pytest.mark.parametrize("rows, length", [(1, 8), (2, 64)])
def test_the_memory_of_a_training_is_what_its_tensors_take(rows, length):
    """Weights, gradients, AdamW's moments, the best state, a teacher, and all that a backward pass keeps."""
    found = params.load(ROOT / "params.yaml")
    usual = found.profiles["small"]
    recipe = usual.finetune.model_copy(update={"batch_size": rows, "sequence_length": length})
    profile = usual.model_copy(update={"finetune": recipe})
    wanted = found.variants["softshare"].finetune.distill
    model, teacher = (opening.open_snapshot(ROOT / "data/model") for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters())
    best, known, kept = [p.detach().clone() for p in model.parameters()], {id(p) for p in model.parameters()}, {}

    def keep(tensor):
        if id(tensor) not in known:
            kept[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    objective = recovery.end_to_end(
        tiny.TASK, model.train(), torch.zeros(rows, length, dtype=torch.int64), teacher, wanted, None
    )
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, minimised = objective(torch.arange(rows))
    minimised.backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *best, *teacher.parameters()]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    expected = sum(t.nbytes for t in tensors) + sum(size for place, (_, size) in kept.items() if place not in own)
    cost = estimates.finetune(profile, found.variants, EMBEDDED)
    assert expected / 2 < cost.memory - estimates.LIBRARIES < 2 * expected


def test_a_fit_holds_the_largest_group_of_any_variant():
    found, large = params.load(ROOT / "params.yaml"), shape.of_config(GPT2, "gpt2")
    sizes = {v.windows.size for v in found.variants.values() if v.surgery.method in ("share", "collapse")}
    members = max(sizes) * 8 * (2 * 768 * 3072 + 3072**2 + 768**2)  # FFN and moments of each, float64
    rest = estimates.LIBRARIES + 2 * 4 * large.parameters
    need = estimates.estimate(found.profiles["gpt2"], found.variants, large)["surgery"].memory - rest
    assert max(sizes) == 10 and members < need < 4 * members


def test_beams_keep_keys_and_values():
    """Without a training nothing else counts beside the weights."""
    found, large = params.load(ROOT / "params.yaml"), shape.of_config(GPT2, "gpt2")
    profile = found.profiles["gpt2"]
    spec = profile.summarize.model_copy(update={"training": None})
    cost = estimates.summarize(profile.model_copy(update={"summarize": spec}), found.variants, large)
    cache = spec.batch_size * spec.beams * spec.context * 12 * 2 * 768 * 4
    assert cache < cost.memory - estimates.LIBRARIES - 4 * large.parameters < 2 * cache


def test_unfinished_trainings_take_what_their_states_take(tmp_path, monkeypatch):
    model, sharing = tiny.shared("gpt2", 0)
    monkeypatch.setattr(resuming.Unfinished, "due", lambda self: True)
    rows = tiny.ids(8, 16)
    recovery.recover(
        tiny.view(model), sharing, None, tiny.TASK, rows, rows.flatten(), RECIPE,
        Recovery(train="all", frobenius=0.0), 0, autocast=nullcontext(), watch=iter,
        unfinished=tmp_path,
    )  # fmt: skip
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    found = params.load(ROOT / "params.yaml")
    scratch = estimates.finetune(found.profiles["small"], found.variants, EMBEDDED).scratch
    assert scratch / EMBEDDED.parameters == pytest.approx(kept / sum(p.numel() for p in model.parameters()), rel=0.1)


def test_every_task_says_how_it_counts():
    assert counted.COUNTED.keys() == choice.TASKS.keys()


def test_text_of_unknown_length_is_said(tmp_path):
    document = params.load(ROOT / "params.yaml")
    costs = estimates.estimate(document.profiles["gpt2"], document.variants, shape.of_config(GPT2, "gpt2"))
    assert costs["finetune"].unknown == "finetune.max_tokens" and costs["extract"].unknown == ""
    text = check.duration(costs, 1e10)
    assert text.startswith("more than") and "finetune.max_tokens, perplexity.max_tokens, reviews.max_train" in text


def test_more_of_anything_costs_more(tmp_path):
    def costs(**changes):
        found = write(tmp_path, **changes)
        return estimates.estimate(found.profiles["small"], found.variants, EMBEDDED)

    usual, profile = costs(), params.load(ROOT / "params.yaml").profiles["small"]
    for key, stage, what in [
        ("extract.max_tokens", "extract", "disk"),
        ("extract.moment_tokens", "extract", "work"),
        ("extract.batch_size", "extract", "memory"),
        ("correlate.reach", "correlate", "disk"),
        ("search.max_tokens", "search", "work"),
        ("finetune.batch_size", "finetune", "memory"),
        ("finetune.epochs", "finetune", "work"),
        ("perplexity.max_tokens", "perplexity", "work"),
        ("reviews.max_tokens", "sentiment", "work"),
        ("summarize.articles", "summarize", "work"),
        ("generate.new_tokens", "generation", "work"),
    ]:
        section, name = key.split(".")
        less = getattr(getattr(profile, section), name)
        more = costs(**{f"{SMALL}.{key}": 11 if name == "reach" else 3 * less, f"{SMALL}.articles.source.test": 96})
        assert getattr(more[stage], what) > getattr(usual[stage], what), key


# The command


def test_the_command_opens_no_model_and_passes_here():
    """Torch is there to count a model's parameters without memory for them."""
    heavy = "{'datasets', 'gguf', 'pyarrow'}"
    program = f"import sys; from stages.commands import check; check.main(); print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n") and "2,674,432 parameters" in done.stdout
    assert re.search(r"^finetune +16 +[\d.]+ [GM]B +\d+ MB", done.stdout, re.M), done.stdout


NO_TENSORS = (2).to_bytes(8, "little") + b"{}"  # as safetensors writes them: the header's length, the header


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with params.yaml and a model of which only config.json is read, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "smallest", lambda device: None)
    monkeypatch.setattr(check, "matmul_speed", lambda: 1e10)
    write(tmp_path)
    (tmp_path / "data/model").mkdir(parents=True)
    shutil.copy(ROOT / "data/model/config.json", "data/model")
    for name in ("model/model.safetensors", "model/vocab.json", "digits/model/model.safetensors", "bare/config.json"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(NO_TENSORS if name.endswith(".safetensors") else b"{}")
    return tmp_path


def test_a_model_that_is_not_known_is_no_error(here, capsys):
    write(here, **{f"{SMALL}.base.model": "nobody/nothing"})
    check.main()
    assert "shape of nobody/nothing is not known here" in capsys.readouterr().out


def test_the_snapshot_stands_in_for_a_source_out_of_reach(here, capsys):
    write(here, **{f"{SMALL}.base.model": "nobody/nothing"})
    shutil.copytree("data/model", check.SNAPSHOT)
    source = {"model": "nobody/nothing", "revision": None, "gguf_file": None}
    check.PROVENANCE.write_text(json.dumps({**source, "layers": 12}))
    check.main()
    assert "2,674,432 parameters" in capsys.readouterr().out
    check.PROVENANCE.write_text(json.dumps({**source, "revision": "v2"}))
    check.main()
    assert "is not known here" in capsys.readouterr().out


def test_mistakes_end_the_command(here):
    write(here, **{f"{SMALL}.search.context": 512, "variants.merged_4.surgery.rank": 0})
    with pytest.raises(UserError, match=f"^params.yaml: {SMALL}.search.context = 512: .* 256 positions$"):
        check.main()
    path = here / "params.yaml"
    path.write_text(path.read_text().replace("context: 512", "context: '512'"))
    with pytest.raises(UserError, match="search.context = '512'"):
        check.main()


def test_what_does_not_fit_is_said_and_ends_the_command(here, monkeypatch, capsys):
    class Little:
        available = free = 5e8

    write(here, **{f"{SMALL}.finetune.batch_size": 8})
    monkeypatch.setattr("psutil.virtual_memory", lambda: Little)
    with pytest.raises(UserError, match="^stage finetune needs about 1 GB of memory, 500 MB are free$"):
        check.main()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Little)
    with pytest.raises(UserError, match="artifacts and DVC's cache need about 1.3 GB of disk, 500 MB are there"):
        check.main()


def test_with_a_gpu_no_time_is_claimed_and_its_memory_counts(here, monkeypatch, capsys):
    write(here, **{f"{SMALL}.finetune.batch_size": 8})
    cards = lambda free: lambda device: None if device == "cpu" else gpus.Card("NVIDIA Something", free)  # noqa: E731
    monkeypatch.setattr(gpus, "smallest", cards(80e9))
    check.main()
    out = capsys.readouterr().out
    assert "not estimated: it would run on NVIDIA Something" in out and " s\n" not in out
    monkeypatch.setattr(gpus, "smallest", cards(8e8))
    with pytest.raises(UserError, match="stage finetune needs about .* of NVIDIA Something, 800 MB are free"):
        check.main()
    write(here, **{f"{SMALL}.finetune.batch_size": 8, f"{SMALL}.runtime.device": "cpu"})
    check.main()
    assert "of one core" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["data/modle", "./model", "/nowhere/model", "~/no-such-model"])
def test_a_folder_that_is_not_there_is_no_hub_id(model):
    with pytest.raises(UserError, match="base.model = .*: there is no such folder"):
        hub.refuse("base", model)
    for there in ("data/model", "openai-community/gpt2", "gpt2"):
        hub.refuse("base", there)


def test_files_that_a_source_names_in_vain_are_told(tmp_path):
    (tmp_path / "some.txt").write_text("text")
    files = {"train": f"{tmp_path}/*.txt", "validation": f"{tmp_path}/none.txt", "test": "https://example.org/a.txt"}
    source = {"kind": "dataset", "path": "text", "data_files": files}
    (line,) = named_files.missing(write(tmp_path, **{f"{SMALL}.prepare.source": source}))
    assert line.endswith(f"profiles.small.prepare.source.data_files.validation = {tmp_path}/none.txt: no such file")


DATASET, SHARES = {"kind": "dataset"}, {"train": "train[:50%]", "validation": "train[50%:60%]", "test": "train[60%:]"}
VAIN = [
    ("small", "base.model", "data/nothing", "base.model = data/nothing: there is no such folder"),
    ("small", "base.model", "text/some.txt", "base.model = text/some.txt: it is a file; its folder is needed"),
    ("small", "base.model", "https://example.org/a/b", "base.model = https://example.org/a/b: an address is no hub id"),
    ("small", "base.model", "text", "base.model = text: no config.json in it; "),
    ("small", "base.model", "data/hollow", "base.model = data/hollow: model.safetensors is empty"),
    (
        "small",
        "base.model",
        "data/parts",
        "base.model = data/parts: model-1.safetensors is empty",
        "base.model = data/parts: model-2.safetensors is missing",
        "base.model = data/parts: model-3.safetensors is damaged, or has not arrived as a whole",
    ),
    (
        "small",
        "base.model",
        "data/bare",
        "base.model = data/bare: no weights in it (model.safetensors or model.safetensors.index.json)",
        "base.model = data/bare: no tokenizer in it",
    ),
    ("small", "base.revision", "v1", "base.revision = v1: data/model is a folder of this machine; null is allowed"),
    ("small", "base.gguf_file", "none.gguf", "base.gguf_file = none.gguf: no such file in data/model"),
    (
        "small",
        "prepare.source",
        DATASET | {"path": "data/local/nothing"},
        "prepare.source.path = data/local/nothing: there is no such folder",
    ),
    ("small", "reviews.source", DATASET | {"path": "./no"}, "reviews.source.path = ./no: there is no such folder"),
    (
        "small",
        "prepare.source",
        DATASET | {"path": "text", "data_files": {"train": "text/*.txt", "validation": "text/**/v*", "test": "text"}},
        "prepare.source.data_files.test = text: a folder; a file is needed",
        "prepare.source.data_files.validation = text/**/v*: no such file",
    ),
    ("small", "prepare.source", DATASET | {"path": "text"}, "prepare.source: path = text needs data_files"),
    (
        "small",
        "prepare.other",
        {"source": DATASET | {"path": "./no"}},
        "prepare.other.source.path = ./no: there is no such folder",
    ),
    (
        "small",
        "prepare.other",
        {"source": DATASET | {"path": "text", "data_files": {"test": "no.txt"}}},
        "prepare.other.source.data_files.test = no.txt: no such file",
    ),
    (
        "small",
        "prepare.other",
        {"source": DATASET | {"path": "text", "data_files": {"test": "empty/*"}}},
        "prepare.other.source.data_files.test = empty/*: no file of data; README.md is read where it is named itself",
    ),
    ("small", "prepare.other", {"source": DATASET | {"path": "text", "data_files": {"test": "empty/README.md"}}}, None),
    ("digits", "prepare.source.file", "none.parquet", "prepare.source.file = none.parquet: no such file"),
    ("digits", "prepare.source.file", "empty", "prepare.source.file = empty: a folder; a file is needed"),
    (
        "digits",
        "prepare.source.file",
        "text/some.txt",
        "prepare.source.file = text/some.txt: no parquet file, or damaged, or has not arrived as a whole",
    ),
    ("digits", "prepare.source", DATASET | SHARES | {"path": "empty"}, "prepare.source.path = empty: no such file"),
    (
        "digits",
        "prepare.source",
        DATASET | SHARES | {"path": "./images", "data_files": {"train": "a/*.png"}},
        "prepare.source.data_files.train = a/*.png: no such file",
    ),
    ("digits", "prepare.source", DATASET | SHARES | {"path": "./images", "data_files": {"train": "b/*.png"}}, None),
]  # fmt: skip


def test_a_file_of_text_that_is_empty_or_cut_short_is_named(tmp_path):
    whole, cut, empty, plain = (tmp_path / name for name in ("whole.parquet", "cut.parquet", "empty.txt", "a.txt"))
    parquet.write_table(pa.table({"text": ["a"] * 100}), whole)
    cut.write_bytes(whole.read_bytes()[:-1])
    empty.touch()
    plain.write_text("a")
    assert [*map(named_files.broken, (whole, cut, empty, plain))] == [
        None, "damaged, or has not arrived as a whole", "empty", None,
    ]  # fmt: skip
    source = DATASET | {"path": "parquet", "data_files": {"train": str(whole), "test": str(cut)}}
    (line,) = named_files.missing_text("reviews.source", LabelledDataset(**source))
    assert line == f"reviews.source.data_files.test = {cut}: {cut} is damaged, or has not arrived as a whole"
    source["data_files"]["test"] = str(plain)
    (line,) = named_files.missing_text("reviews.source", LabelledDataset(**source))
    assert line.endswith(f"{plain} is no parquet file, or damaged, or has not arrived as a whole")


@pytest.mark.parametrize("profile, key, value, lines", [(*case[:3], case[3:]) for case in VAIN], ids=str)
def test_what_a_profile_names_in_vain_is_told_before_and_instead_of_all_else(
    profile, key, value, lines, here, capsys
):  # fmt: skip
    for name in ("text/some.txt", "empty/README.md", "images/b/1.png", "data/digits/digits.parquet"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("text")
    for name in ("hollow", "parts"):
        shutil.copytree(here / "data/model", here / "data" / name)
    (here / "data/hollow/model.safetensors").write_text("")
    (here / "data/parts/model.safetensors").rename(here / "data/parts/model-0.safetensors")
    (here / "data/parts/model-1.safetensors").write_text("")
    (here / "data/parts/model-3.safetensors").write_bytes((here / "data/model/model.safetensors").read_bytes()[:-1])
    index = {"weight_map": {f"layer.{number}": f"model-{number}.safetensors" for number in range(4)}}
    (here / "data/parts/model.safetensors.index.json").write_text(json.dumps(index))
    config(here / "data/digits/model", json.loads((ROOT / "data/digits/model/config.json").read_text()))
    text = io.StringIO()
    YAML(typ="safe").dump(changed({f"profiles.{profile}.{key}": value, "profile": profile}), text)
    (here / "params.yaml").write_text(text.getvalue())
    if lines == (None,):
        check.main()
        assert "right" in capsys.readouterr().out
        return
    with pytest.raises(UserError) as caught:
        check.main()
    told = str(caught.value).splitlines()
    assert len(told) == len(lines) and capsys.readouterr().out == ""
    for said, line in zip(told, lines):
        assert said.strip().startswith(f"params.yaml: profiles.{profile}.{line}")


@pytest.mark.parametrize(
    "said, line",
    [
        ({"model": "data/void"}, ".model = data/void: no config.json in it"),
        ({"model": "data/model", "revision": "main"}, ".revision = main: data/model is a folder of this machine"),
    ],
)
def test_a_folder_of_an_external_variant_is_a_whole_model(said, line, here):
    (here / "data/void").mkdir()
    rival = {"windows": {"choose": "none"}, "surgery": {"method": "external", **said}, "finetune": {}}
    write(here, **{"variants.rival": rival})
    with pytest.raises(UserError, match=f"^params.yaml: variants.rival.surgery{re.escape(line)}"):
        check.main()


def test_an_index_that_names_no_weights_is_one_line(here):
    (here / "data/model/model.safetensors").rename(here / "data/model/model.safetensors.index.json")
    with pytest.raises(UserError, match="^data/model/model.safetensors.index.json: it is no index of weights$"):
        check.main()


def test_an_index_of_nothing_is_one_line(here):
    (here / "data/model/model.safetensors").unlink()
    (here / "data/model/model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="^data/model/model.safetensors.index.json: it names no weights$"):
        check.main()


def test_a_tokenizer_that_cannot_be_read_is_one_line(here):
    (here / "data/model/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="small.base.model = data/model: cannot read tokenizer.json as a tok"):
        check.main()


def test_more_threads_than_cores_are_a_warning(here, capsys):
    write(here, **{f"{SMALL}.runtime.threads": 1000})
    check.main()
    assert f"warning: {SMALL}.runtime.threads = 1000: " in capsys.readouterr().out


def test_a_folder_that_a_variant_names_in_vain_is_told(here):
    rival = {"windows": {"choose": "none"}, "surgery": {"method": "external", "model": "data/rival"}, "finetune": {}}
    write(here, **{"variants.rival": rival})
    with pytest.raises(UserError, match="^params.yaml: variants.rival.surgery.model = data/rival: there is no such"):
        check.main()


def test_the_tokens_of_a_generated_text_are_counted(here, monkeypatch):
    """Exactly where a guess from a few stories does not settle it."""
    monkeypatch.setattr(sources, "_yaml", cache(sources._yaml))
    for name in ("data/lexicon.yaml", "data/model/tokenizer.json"):
        shutil.copy(ROOT / name, here / name)
    profile = write(here, **{f"{SMALL}.prepare.source.train": 20}).profiles["small"]
    known = amounts.tokenizer("small", profile)
    there = amounts.most(profile, 10**6, EMBEDDED, known)
    assert 20 * 90 < there < 20 * 400 and amounts.most(profile, 128, EMBEDDED, known) == 128
    write(here, **{f"{SMALL}.prepare.source.train": 20, f"{SMALL}.extract.moment_tokens": there})
    whole = f"takes {-(-there // 128) * 128:,} tokens in sequences of 128: the train split has only {there:,} tokens"
    with pytest.raises(UserError, match=f"extract.moment_tokens = {there} {whole}"):
        check.main()
    length = {f"{SMALL}.extract.sequence_length": 1, f"{SMALL}.extract.moment_tokens": there}
    found = write(here, **{f"{SMALL}.prepare.source.train": 20, f"{SMALL}.extract.max_tokens": 2, **length})
    assert amounts.mistakes("small", found.profiles["small"], EMBEDDED) == []
    text = sources.generated(amounts.LEXICON, 0, "train", 20)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "data/model/tokenizer.json"))
    assert there == len(corpus.tokenise(tokenizer, text))


def test_a_text_has_room_beside_what_stands_around_it(here):
    for name in ("data/lexicon.yaml", "data/model/tokenizer.json"):
        shutil.copy(ROOT / name, here / name)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "data/model/tokenizer.json"))
    format_of, template = "A story: {article}\nIn short:", "Review: {text} It was"
    around = [sum(len(tokenizer(part)["input_ids"]) for part in parts) for parts in (
        ("A story: ", "\nIn short:"), ("Review: ", " It was")
    )]  # fmt: skip

    def lines(spare):
        sizes = {f"{SMALL}.summarize.context": 40 + around[0] + spare, f"{SMALL}.reviews.max_tokens": around[1] + spare}
        texts = {f"{SMALL}.summarize.format": format_of, f"{SMALL}.reviews.template": template}
        found = write(here, **sizes, **texts, **{f"{SMALL}.summarize.new_tokens": 40})
        return amounts.mistakes("small", found.profiles["small"], EMBEDDED)

    assert lines(1) == []
    assert lines(0) == [
        f"{SMALL}.reviews.max_tokens = {around[1]}: template alone has {around[1]} tokens",
        f"{SMALL}.summarize.context = {40 + around[0]}: format and new_tokens take {40 + around[0]} tokens",
    ]


def test_the_tokens_of_images_are_counted():
    found, known = params.load(ROOT / "params.yaml").profiles, shape.of_folder(ROOT / "data/digits/model")
    assert (
        amounts.most(found["digits"], 1, known, None) == 1000 * 5
        and amounts.most(found["vit"], 1, known, None) == 40000 * 5
    )
    _, labels = digits.read(ROOT / "data/digits/digits.parquet")
    assert amounts.DIGITS == len(digits.chosen(labels, "train"))
    spec = found["digits"].extract.model_copy(update={"moment_tokens": 5001})
    (line,) = amounts.mistakes("digits", found["digits"].model_copy(update={"extract": spec}), known)
    assert line == "profiles.digits.extract.moment_tokens = 5001: the train split has only 5,000 tokens"


def test_another_text_costs_as_much_as_the_test_split(tmp_path):
    def work(**changes):
        found = write(tmp_path, **changes)
        return estimates.estimate(found.profiles["small"], found.variants, EMBEDDED)["perplexity"].work

    without = {f"{SMALL}.prepare.other": None}
    assert work() > work(**without)
    plain = {f"{SMALL}.perplexity.seed_protocol": None}
    assert work(**plain) == pytest.approx(2 * work(**plain, **without))
