"""params.yaml: the repository's own passes, and every mistake is one line with the key and the value."""

import copy
import io
import json
import re
import typing
from pathlib import Path

import pytest
from closure import ROOT
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from shrunk import run

from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.settings.recoveries import CONTROL, SHALLOWER
from stages.core.settings.section import Section
from stages.core.settings.surgeries import Share

REPOSITORY = Path(__file__).parents[1] / "params.yaml"
# Through JSON, so that sections which the file writes once for two profiles can be changed for one.
DOCUMENT = json.loads(json.dumps(YAML(typ="safe").load(REPOSITORY.read_text())))
GONE = object()
SMALL = "profiles.small"


def load(folder, changes):
    """The repository's params with some values changed, by dotted path; GONE takes a key away."""
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = document
        for key in parents:
            part = part.setdefault(key, {})
        if value is GONE:
            del part[last]
        else:
            part[last] = value
    return load_document(folder, document)


def load_document(folder, document):
    text = io.StringIO()
    YAML(typ="safe").dump(document, text)
    return load_text(folder, text.getvalue())


def load_text(folder, text):
    (folder / "params.yaml").write_text(text, errors="surrogateescape")
    return params.load(folder / "params.yaml")


def mistakes(folder, changes):
    """The lines of the error that the changes bring, without the file's name."""
    with pytest.raises(UserError) as caught:
        load(folder, changes)
    prefix = f"{folder / 'params.yaml'}: "
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def test_the_repository_s_own_file_is_right(monkeypatch):
    loaded = params.load(REPOSITORY)
    assert list(loaded.variants) == list(DOCUMENT["variants"]) and loaded.profile in loaded.profiles
    monkeypatch.chdir(REPOSITORY.parent)
    assert params.section("gpt2", "base").model == DOCUMENT["profiles"]["gpt2"]["base"]["model"]
    assert params.variant("softshare", "surgery") == loaded.variants["softshare"].surgery
    assert params.variants(loaded.profile) == loaded.variants and params.pretrain() == loaded.pretrain


def test_all_learn_alike_but_the_original_and_the_notes_recipe():
    """Else a lead of softshare over a baseline might be its teacher's."""
    for name, variant in params.load(REPOSITORY).variants.items():
        wanted = variant.finetune
        if name in ("original", "softshare_seed"):
            assert wanted.distill is None, name
        else:
            hidden = 0 if variant.surgery.method in SHALLOWER else 20
            assert (wanted.train, wanted.frobenius, wanted.teacher) == ("all", 0, "control"), name
            assert (wanted.distill.logits, wanted.distill.hidden) == (0.5, hidden), name


def test_what_passes_is_not_changed(tmp_path):
    loaded = load(tmp_path, {f"{SMALL}.finetune.clip": 2, f"{SMALL}.runtime.device": "cuda:1"})
    assert loaded.profiles["small"].finetune.clip == 2 and loaded.profiles["small"].runtime.device == "cuda:1"
    given, kept = DOCUMENT["profiles"]["small"]["prepare"], loaded.profiles["small"].prepare.model_dump()
    assert kept == given


UNKNOWN = [
    ("nonsense", 3, "nonsense = 3"),
    (f"{SMALL}.search.contxt", 64, f"{SMALL}.search.contxt = 64"),
    (f"{SMALL}.prepare.source.splits", 2, f"{SMALL}.prepare.source.splits = 2"),
    ("variants.softshare.surgery.ranks", 4, "variants.softshare.surgery.ranks = 4"),
    ("variants.original.windows.size", 4, "variants.original.windows.size = 4"),
    ("variants.merged_4.finetune.lr", 0.1, "variants.merged_4.finetune.lr = 0.1"),
    ("pretrain.depth", 12, "pretrain.depth = 12"),
]
MISTYPED = [
    (f"{SMALL}.search.context", "256", f"{SMALL}.search.context = '256'"),
    (f"{SMALL}.search.context", 256.0, f"{SMALL}.search.context = 256.0"),
    (f"{SMALL}.finetune.batch_size", True, f"{SMALL}.finetune.batch_size = true"),
    (f"{SMALL}.finetune.learning_rate.all", "2e-05", f"{SMALL}.finetune.learning_rate.all = '2e-05'"),
    (f"{SMALL}.base.model", 7, f"{SMALL}.base.model = 7"),
    (f"{SMALL}.generate.prompts", "One", f"{SMALL}.generate.prompts = 'One'"),
    (f"{SMALL}.generate.prompts", ["One", 2], f"{SMALL}.generate.prompts.1 = 2"),
    ("variants.softshare.surgery.rank", "8", "variants.softshare.surgery.rank = '8'"),
    ("variants.softshare.surgery", 8, "variants.softshare.surgery = 8"),
    ("variants.merged_4.windows.size", None, "variants.merged_4.windows.size = null: a whole number is needed"),
]
OUT_OF_BOUNDS = [
    (f"{SMALL}.runtime.device", "tpu", f"{SMALL}.runtime.device = 'tpu'"),
    (f"{SMALL}.runtime.threads", 0, f"{SMALL}.runtime.threads = 0: at least 1 or null is needed"),
    (f"{SMALL}.runtime.threads", 2**31, f"{SMALL}.runtime.threads = .*: less than 2147483648 or null is needed"),
    (f"{SMALL}.generate.seed", 2**32, f"{SMALL}.generate.seed = 4294967296: less than 4294967296 is needed"),
    (f"{SMALL}.base.model", "  ", f"{SMALL}.base.model = '  ': text is needed"),
    (f"{SMALL}.base.gguf_file", "", f"{SMALL}.base.gguf_file = '': text or null is needed"),
    (f"{SMALL}.extract.sites", ["pre_activation"] * 2, rf"{SMALL}.extract.sites = .*: each may be there once"),
    (f"{SMALL}.generate.prompts", [" "], rf"{SMALL}.generate.prompts.0 = ' ': text is needed"),
    (f"{SMALL}.search.max_tokens", 2**31, f"{SMALL}.search.max_tokens = 2147483648: less than 2147483648 is needed"),
    (f"{SMALL}.generate.prompts", ["a", "a"], rf"{SMALL}.generate.prompts = .*: each may be there once"),
    ("variants.softshare.skip", ["digits"] * 2, "variants.softshare.skip = .*: each may be there once"),
    ("variants.softshare.windows.exclude_layers", [3, 3], "variants.softshare.windows.exclude_layers = .* once"),
    (f"{SMALL}.extract.sites", ["input"], f"{SMALL}.extract.sites.0 = 'input'"),
    (f"{SMALL}.extract.sites", ["post_activation"], r"variants\.\w+\.surgery\.alignment = pre_activation is not among"),
    (f"{SMALL}.correlate.reach", 1, f"{SMALL}.correlate.reach = 1"),
    (f"{SMALL}.search.context", 1, f"{SMALL}.search.context = 1"),
    (f"{SMALL}.finetune.warmup", 1.0, f"{SMALL}.finetune.warmup = 1.0"),
    (f"{SMALL}.finetune.weight_decay", -0.1, f"{SMALL}.finetune.weight_decay = -0.1"),
    (f"{SMALL}.finetune.weight_decay", float("inf"), f"{SMALL}.finetune.weight_decay = inf"),
    (f"{SMALL}.finetune.clip", 0, f"{SMALL}.finetune.clip = 0"),
    (f"{SMALL}.finetune.learning_rate.deltas", float("nan"), f"{SMALL}.finetune.learning_rate.deltas = nan"),
    (f"{SMALL}.generate.temperature", 0.0, f"{SMALL}.generate.temperature = 0.0"),
    (f"{SMALL}.generate.prompts", [], rf"{SMALL}.generate.prompts = \[\]"),
    (f"{SMALL}.latency.repeats", 1, f"{SMALL}.latency.repeats = 1"),
    (f"{SMALL}.prepare.source.train", 0, f"{SMALL}.prepare.source.train = 0"),
    (f"{SMALL}.prepare.source.kind", "web", f"{SMALL}.prepare.source.kind = 'web': stories or dataset is needed"),
    ("variants.merged_4.windows.size", 1, "variants.merged_4.windows.size = 1"),
    (
        "variants.merged_4.windows.choose",
        "all",
        "variants.merged_4.windows.choose = 'all': none, blocks, best, budget, forms or layers is needed",
    ),
    (
        "variants.softshare.surgery.method",
        "graft",
        "variants.softshare.surgery.method = 'graft': none, share, collapse, .* or external is needed",
    ),
    ("variants.softshare.surgery.base", "median", "variants.softshare.surgery.base = 'median'"),
    ("variants.softshare.finetune.frobenius", -1.0, "variants.softshare.finetune.frobenius = -1.0"),
    ("variants.softshare.finetune.frobenius", float("inf"), "variants.softshare.finetune.frobenius = inf"),
    ("variants.softshare.finetune.rate", 0.0, "variants.softshare.finetune.rate = 0.0"),
    ("variants.softshare.finetune.rate", 11.0, "variants.softshare.finetune.rate = 11.0"),
    ("variants.a b", DOCUMENT["variants"]["original"], "variants.a b.*'a b'"),
    ("variants.ORIGINAL", DOCUMENT["variants"]["original"], "variants.original: variants.ORIGINAL has the same files"),
    ("variants.softshare.surgery.delta", "full", "variants.softshare.surgery.delta = 'full'"),
    ("variants.merged_4.finetune.distill.hiden", 1.0, "variants.merged_4.finetune.distill.hiden = 1.0"),
    ("pretrain.vocabulary", 256, "pretrain.vocabulary = 256"),
]
MISSING = [
    ("pretrain", GONE, "pretrain: missing; it has no default$"),
    ("variants", GONE, "variants: missing; it has no default$"),
    (f"{SMALL}.search", GONE, rf"{SMALL}.search: missing; \{{\}} leaves it at its defaults$"),
    (f"{SMALL}.finetune", GONE, rf"{SMALL}.finetune: missing; \{{\}} leaves it at its defaults$"),
    (f"{SMALL}.summarize.training.epochs", GONE, f"{SMALL}.summarize.training.epochs: missing; it has no default$"),
    ("profiles.gpt2.prepare.source.path", GONE, "profiles.gpt2.prepare.source.path: missing; it has no default$"),
    ("variants.softshare.surgery.rank", GONE, "variants.softshare.surgery: rank = 0 with delta = joint"),
    ("variants.merged_4.finetune", GONE, r"variants.merged_4.finetune: missing; \{\} leaves it at its defaults$"),
    ("variants.svd.surgery.fit", GONE, "variants.svd.surgery.fit: missing; it has no default$"),
    (
        "variants.softshare.windows.choose",
        GONE,
        "variants.softshare.windows.choose: missing; none, blocks, best, budget, forms or layers is needed",
    ),
    ("profiles", {}, "profiles"),
]
DISAGREEING = [
    (f"{SMALL}.summarize.format", "TL;DR:", f"{SMALL}.summarize: format = 'TL;DR:' must hold {{article}} once"),
    (
        f"{SMALL}.summarize.training.seeds",
        [1, 1],
        rf"{SMALL}.summarize.training.seeds = \[1, 1\]: each may be there once",
    ),
    (f"{SMALL}.latency.seed_protocol.length", 8, f"{SMALL}.latency.seed_protocol: length = 8 counts the prompt"),
    (
        "profiles.gpt2.articles.source.train",
        "test[:100]",
        "profiles.gpt2.articles.source: train = test.* and test = .* overlap",
    ),
    ("profile", "large", "profile = large is not one of .*small"),
    ("variants.original", GONE, "variants.original with surgery.method = none must be there"),
    ("profiles.gpt2.prepare.source.test", "train[90%:]", r".*source: train = train and test = train\[90%:\] overlap"),
    ("profiles.gpt2.prepare.source.train", "train[:50", r"profiles.gpt2.prepare.source: 'train\[:50' is no split"),
    (f"{SMALL}.search.max_tokens", 255, f"{SMALL}.search: max_tokens = 255 is less than context = 256"),
    (f"{SMALL}.finetune.max_tokens", 255, f"{SMALL}.finetune: max_tokens = 255 is less than sequence_length = 256"),
    (f"{SMALL}.perplexity.max_tokens", 9, f"{SMALL}.perplexity: max_tokens = 9 is less than context = 256"),
    (f"{SMALL}.summarize.new_tokens", 240, f"{SMALL}.summarize: new_tokens = 240: context = 240 .* 1 to 239 are"),
    (f"{SMALL}.summarize.articles", 33, f"{SMALL}: summarize.articles = 33: articles.source.test has 32, so 1 to 32"),
    ("profiles.gpt2.summarize.articles", 101, "profiles.gpt2: summarize.articles = 101: .* has 100, so 1 to 100"),
    (
        "profiles.gpt2.summarize.training",
        DOCUMENT["profiles"]["small"]["summarize"]["training"],
        "profiles.gpt2: summarize.training needs pairs to learn from: articles.source.train is null",
    ),
    (f"{SMALL}.perplexity.stride", 257, f"{SMALL}.perplexity: stride = 257 exceeds context = 256"),
    (
        "profiles.smollm2_local.prepare.source.validation",
        "dev",
        "profiles.smollm2_local.prepare.source: validation = dev: data_files has train, no dev",
    ),
    (
        "profiles.gpt2.prepare.source.validation",
        "train",
        ".*source: train = train and validation = train overlap",
    ),
    ("variants.softshare.surgery.rank", 0, "variants.softshare.surgery: rank = 0 with delta = joint"),
    ("variants.softshare.surgery.base", "mean", "variants.softshare.surgery: delta = joint .* base = mean contradicts"),
    ("variants.softshare.surgery.biases", "shared", "variants.softshare.surgery: bias_correction needs biases = own"),
    ("variants.merged_4.surgery.repair", "scale", "variants.merged_4.surgery.repair = .*none.*least_squares"),
    (
        "variants.softshare.surgery",
        {"method": "share", "delta": "joint", "rank": 8, "biases": "shared", "repair": "least_squares"},
        "variants.softshare.surgery: repair = least_squares with deltas needs biases = own",
    ),
    ("variants.merged_4.surgery.gains", "moving_base", "variants.merged_4.surgery: gains = moving_base: only delta"),
    ("variants.merged_4.surgery.rank", 8, "variants.merged_4.surgery: rank = 8 with delta = none"),
    (
        "variants.merged_4.windows",
        {"choose": "none"},
        "variants.merged_4: windows.choose = none with surgery.method = share, which takes best or blocks or budget",
    ),
    (
        "variants.compressed_4.surgery",
        {"method": "collapse", "alignment": "identity", "base": "mean", "repair": "differences"},
        "variants.compressed_4.surgery: repair = differences starts from the first layer; base = mean contradicts",
    ),
    ("variants.dropped.surgery.layers", 2, "variants.dropped.surgery: method = drop takes either layers or target"),
    ("variants.svd.surgery.basis", 2, "variants.svd.surgery: basis = 2 with fit = svd"),
    ("variants.svd.windows", {"choose": "blocks", "size": 4}, "variants.svd: windows.choose = blocks with .* low_rank"),
    (
        "variants.pruned.surgery.target_parameters",
        GONE,
        "variants.pruned.surgery.target_parameters: missing; it has no default$",
    ),
    (
        "variants.merged_4.surgery",
        {"method": "none"},
        "variants.merged_4: windows.choose = blocks with surgery.method = none",
    ),
    (f"{SMALL}.sentiment.seeds", [0, 0], rf"{SMALL}.sentiment.seeds = \[0, 0\]: each may be there once"),
    (f"{SMALL}.reviews.max_train", 3, f"{SMALL}.reviews.max_train = 3: at least 4 or null is needed"),
    (f"{SMALL}.reviews.template", "text", f"{SMALL}.reviews: template = 'text' must hold"),
    (
        "profiles.gpt2.reviews.source.test",
        "train",
        ".*reviews.source: train = train and test = train overlap",
    ),
    (f"{SMALL}.finetune.seeds", [0, 0], rf"{SMALL}.finetune.seeds = \[0, 0\]: each may be there once"),
    (
        "variants.softshare.windows.sizes",
        [4, 4],
        r"variants.softshare.windows.sizes = \[4, 4\]: each may be there once",
    ),
    (
        "variants.merged_4.windows",
        {"choose": "budget", "sizes": [4], "target_parameters": 0.8},
        "variants.merged_4: windows.choose = budget needs a surgery with a delta",
    ),
    ("variants.compressed_4.finetune.train", "window", "variants.compressed_4: finetune.train = window needs"),
    (
        "variants.compressed_4.finetune.distill",
        {"logits": 0.5, "hidden": 1.0},
        "variants.compressed_4: finetune.distill.hidden needs",
    ),
    ("variants.compressed_4.finetune.warm_start", 0.5, "variants.compressed_4: finetune.warm_start needs"),
    (
        "variants.softshare_seed.finetune.teacher",
        "control",
        "variants.softshare_seed.finetune: teacher = control: nobody asks",
    ),
    (
        "variants.merged_4.finetune.distill",
        {"logits": 0.0, "hidden": 0.0},
        "variants.merged_4.finetune.distill: logits = 0 and hidden = 0 learn nothing from the teacher; write distill",
    ),
    (
        "variants.softshare.finetune.around",
        "start",
        "variants.softshare.finetune: around = start: it is of the penalty on deltas, which frobenius = 0 leaves out",
    ),
    ("variants.softshare.finetune.teacher", "svd", "variants.softshare.finetune.teacher = 'svd'"),
    ("variants.merged_4.finetune.train", "deltas", "variants.merged_4: finetune.train = deltas needs"),
    ("variants.compressed_4.finetune.frobenius", 0.5, "variants.compressed_4: finetune.frobenius = 0.5 needs"),
    (
        "variants.merged_4.windows.size",
        11,
        r"variants.merged_4.windows.size = 11 exceeds profiles.small.correlate.reach = 10",
    ),
    (
        "variants.softshare_seed.windows.sizes",
        [13],
        r"variants.softshare_seed.windows.sizes = \[13\] exceeds profiles.small.correlate.reach = 10",
    ),
]


NAMES = ["a", "svd-9", "Merged_4_b", "none", "x" * 64]
NO_NAMES = ["svd_0.9", "-x", "_x", "4", "a b", "a/b", "a@b", "..", ".", "", "a:b", "a$b", "${a}", "ä", "a\n", "x" * 65]


@pytest.mark.parametrize("kind, alike", [("variants", "svd"), ("profiles", "gpt2")])
def test_names_are_what_dvc_and_file_systems_take(kind, alike, tmp_path):
    document = copy.deepcopy(DOCUMENT)
    for name in NAMES:
        document[kind][name] = document[kind][alike]
    assert set(NAMES) < set(getattr(load_document(tmp_path, document), kind))
    for name in NO_NAMES:
        document = copy.deepcopy(DOCUMENT)
        document[kind][name] = document[kind][alike]
        with pytest.raises(UserError) as caught:
            load_document(tmp_path, document)
        line = str(caught.value).removeprefix(f"{tmp_path / 'params.yaml'}: ")
        assert line == f"{kind}.{name} = {name!r}: a name is a letter, then letters, digits, _ and -, 64 in all at most"


@pytest.mark.parametrize(
    "key, before, after",
    [
        ("generate.prompts", "Everybody in the fishing village of", r'"\ud800"'),
        ("reviews.template", 'template: "{text}"', r'template: "{text}\udc00"'),
        ("base.model", "base: {model: data/model}", r'base: {model: "data/\ud800"}'),
    ],
)
def test_text_has_whole_characters(key, before, after, tmp_path):
    text = (ROOT / "params.yaml").read_text()
    assert text.count(before) == 1
    with pytest.raises(UserError, match=f"{SMALL}.{key} = .*: half of a character") as caught:
        load_text(tmp_path, text.replace(before, after))
    assert str(caught.value).encode("utf-8", "backslashreplace")


STUDY = """
vars: [params.yaml]
stages:
  surgery:
    foreach: ${variants}
    do:
      cmd: mkdir -p sizes && echo ${key} > sizes/${key}.json
      params: ["profiles.${profile}.runtime", "variants.${key}.windows", "variants.${key}.finetune"]
      outs: ["sizes/${key}.json"]
"""


def test_dvc_takes_every_name_and_sections_that_say_nothing(tmp_path):
    document = copy.deepcopy(DOCUMENT) | {"profile": NAMES[1], "profiles": {NAMES[1]: DOCUMENT["profiles"]["gpt2"]}}
    document["variants"] = dict.fromkeys(["original", *NAMES], DOCUMENT["variants"]["original"])
    load_document(tmp_path, document)
    run(tmp_path, "dvc", "init", "-q", "--no-scm")
    (tmp_path / "dvc.yaml").write_text((REPOSITORY.parent / "dvc.yaml").read_text())
    listed = run(tmp_path, "dvc", "stage", "list", "--name-only").split()
    assert {f"{stage}@{name}" for name in NAMES for stage in ("search", "latency")} < set(listed)
    (tmp_path / "dvc.yaml").write_text(STUDY)
    run(tmp_path, "dvc", "repro", "-q")
    assert {path.stem for path in (tmp_path / "sizes").iterdir()} == set(document["variants"])
    assert "up to date" in run(tmp_path, "dvc", "status")


@pytest.mark.parametrize(
    "key, value",
    [
        ("profiles.small.finetune.clip", 2.0),  # left out
        ("profiles.small.finetune.learning_rate.norms", 0.5),  # left out of a part that is there
        ("profiles.gpt2.finetune.validation.times", 3),  # left out with all around it
        ("profiles.small.search.context", 128),  # there
        ("variants.merged_4.surgery.base", "mean"),
        ("variants.merged_4.finetune.distill.hidden", 5.0),
    ],
)
def test_two_plus_signs_set_any_key_of_an_experiment(key, value, tmp_path):
    """What `dvc exp run -S` does to the file. Without them, a key that the file leaves out is refused."""
    path = tmp_path / "params.yaml"
    path.write_text(REPOSITORY.read_text())
    apply_overrides(path, [f"++{key}={value}"])
    part, before = params.load(path).model_dump(), params.load(REPOSITORY).model_dump()
    *above, last = key.split(".")
    found, kept = part, before
    for step in above:
        found, kept = found[step], kept[step]
    assert found[last] == value != kept[last]
    kept[last] = value
    assert part == before and "# " in path.read_text()


def test_an_experiment_can_change_every_profile(tmp_path):
    """DVC's -S leaves a section as it was, without a word, where the file has a YAML anchor."""
    path, before = tmp_path / "params.yaml", params.load(REPOSITORY)
    path.write_text(REPOSITORY.read_text())
    apply_overrides(path, [f"++profiles.{name}.runtime.threads=7" for name in before.profiles])
    assert {profile.runtime.threads for profile in params.load(path).profiles.values()} == {7}


@pytest.mark.parametrize("task", ["vision", 5, None])
def test_a_task_that_is_none_is_one_line(tmp_path, task):
    document = YAML(typ="safe").load(REPOSITORY.read_text())
    document["profiles"]["digits"]["task"] = task
    path = tmp_path / "params.yaml"
    YAML().dump(document, path)
    with pytest.raises(UserError) as caught:
        params.load(path)
    shown = {"vision": "'vision'", None: "null"}.get(task, task)
    assert str(caught.value) == f"{path}: profiles.digits.task = {shown}: language or image_classification is needed"


def test_an_anchor_is_told_with_its_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("profile: small\nprofiles:\n  small: &it {task: language}\n  other: {<<: *it}\n")
    assert params.anchors(path) == [3] and params.anchors(REPOSITORY) == []


def test_what_the_file_leaves_out_has_always_been_so():
    """Golden values of all profiles and variants; a new key may be added beside them."""
    loaded = params.load(REPOSITORY).model_dump()
    for path, value in leaves(YAML(typ="safe").load((Path(__file__).parent / "golden_params.yaml").read_text())):
        part = loaded
        for key in path:
            part = part[key]
        assert part == value and type(part) is type(value), ".".join(path)


def leaves(values, path=()):
    """(path, value) of every value that is no mapping."""
    if not isinstance(values, dict):
        return [(path, values)]
    return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]


def test_the_file_says_little():
    assert len(REPOSITORY.read_text().splitlines()) <= 260


def test_a_variant_that_says_nothing_is_recovered_by_its_surgery(tmp_path):
    """Every surgery's `finetune: {}`, and what follows where a part of it is said."""

    def finetune(name, **said):
        return load(tmp_path, {f"variants.{name}.finetune": said}).variants[name].finetune

    logits, states = (
        {"logits": 0.5, "temperature": 1.0, "hidden": 0.0},
        {"logits": 0.5, "temperature": 1.0, "hidden": 20.0},
    )
    for name, distill in {
        "merged_4": states,
        "svd": states,
        "pruned": states,
        "compressed_4": logits,
        "dropped": logits,
    }.items():
        found = finetune(name)
        assert (found.distill.model_dump(), found.teacher, found.train, found.frobenius) == (
            distill,
            "control",
            "all",
            0.0,
        )
    assert finetune("original") == CONTROL and CONTROL.distill is None and CONTROL.teacher == "original"
    assert finetune("merged_4", distill={"logits": 0.7}).distill.model_dump() == states | {"logits": 0.7}
    assert finetune("merged_4", distill={"hidden": 0.0}).distill.model_dump() == logits
    alone, warm = finetune("merged_4", distill=None), finetune("merged_4", distill=None, warm_start=0.5)
    assert (alone.distill, alone.teacher) == (None, "original") and (warm.distill, warm.teacher) == (None, "control")
    assert finetune("merged_4", teacher="original").teacher == "original"


@pytest.mark.parametrize("delta, biases, repair", [("none", "shared", "least_squares"), ("svd", "own", "none")])
def test_what_a_share_leaves_out_follows_its_delta(delta, biases, repair):
    said = {"method": "share", "delta": delta, "rank": 0 if delta == "none" else 8}
    found = Share(**said)
    assert (found.alignment, found.reference, found.base) == ("cost", "centre", "regression")
    assert (found.biases, found.repair, found.bias_correction) == (biases, repair, False)
    corrected = Share(**said, bias_correction=True)
    assert (corrected.biases, corrected.repair) == ("own", repair)
    assert Share(**said, biases="own", repair="none") == found.model_copy(update={"biases": "own", "repair": "none"})


def sections(part):
    """Every Section class that a Section's fields lead to."""
    found, waiting = set(), [part]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Section) and kind not in found:
            found.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
        waiting += typing.get_args(kind)
    return found


def test_every_key_is_documented():
    """By its description, or, where it is a section or says which kind a section is, by the section's docstring."""
    for part in sections(params.Params) - {params.Params}:
        assert part.__doc__ and part.__doc__ != Section.__doc__, part
        for name, field in part.model_fields.items():
            tag = typing.get_origin(field.annotation) is typing.Literal and len(typing.get_args(field.annotation)) == 1
            assert field.description or tag or sections(field.annotation), f"{part.__name__}.{name}"
            if field.default_factory:
                assert field.description.startswith("default: "), f"{part.__name__}.{name}"


CASES = UNKNOWN + MISTYPED + OUT_OF_BOUNDS + MISSING + DISAGREEING


@pytest.mark.parametrize("path, value, message", CASES, ids=[path for path, _, _ in CASES])
def test_a_mistake_is_one_line_with_key_and_value(path, value, message, tmp_path):
    (line,) = mistakes(tmp_path, {path: value})
    assert re.match(message, line), line


def test_an_original_that_is_not_original_is_refused(tmp_path):
    (line,) = mistakes(tmp_path, {"variants.original": DOCUMENT["variants"]["merged_4"]})
    assert line.startswith("variants.original with surgery.method = none must be there")


def test_every_mistake_has_its_line(tmp_path):
    lines = mistakes(tmp_path, {f"{SMALL}.search.context": 0, "pretrain.heads": "4", "nonsense": 1})
    assert [line.split(" = ")[0] for line in lines] == [f"{SMALL}.search.context", "pretrain.heads", "nonsense"]


def test_every_variant_that_is_not_aligned_has_its_line(tmp_path):
    lines = mistakes(tmp_path, {f"{SMALL}.correlate.reach": 5, f"{SMALL}.extract.sites": ["post_activation"]})
    long = [f"variants.merged_{size}.windows.size" for size in (10, 6, 8)]
    assert sorted(line.split(" = ")[0] for line in lines) == [*long, "variants.softshare_seed.surgery.alignment"]


def test_a_profile_not_chosen_is_checked_but_not_for_reach(tmp_path):
    load(tmp_path, {"profiles.gpt2.correlate.reach": 2})
    assert mistakes(tmp_path, {"profiles.gpt2.correlate.reach": 0})


@pytest.mark.parametrize("name", ["none", "blocks", "best", "share", "collapse", "stories", "dataset"])
def test_names_that_are_words_of_the_file_too_are_told(name, tmp_path):
    variant = copy.deepcopy(DOCUMENT["variants"]["softshare"])
    variant["surgery"]["rank"] = "8"
    (line,) = mistakes(tmp_path, {f"variants.{name}": variant})
    assert line.startswith(f"variants.{name}.surgery.rank = '8'")


@pytest.mark.parametrize(
    "text, message",
    [
        ("profile: [small", "line 1: not valid YAML: expected"),
        ("profile: small\nprofile: gpt2\n", "line 2: profile is there already; give it once"),
        ("a: 1\nprofile:small\nb: 2", "line 2: not valid YAML: a key ends with a colon and a space"),
        ("profile:small\nb: 2", "line 2: not valid YAML: no key may be here: indentation, or the key above, is wrong"),
        ("a:\n  b: 1\n c: 2", "line 3: not valid YAML: indentation, a bracket or a quote is wrong here or above"),
        ("a: 1\n  b: 2", "line 2: not valid YAML: no key may be here: indentation, or the key above"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: --- begins a second document, and one is needed"),
        ("profile:small\n\nb:\n  c: 2", "line 3: not valid YAML: no key may be here"),
        ("a: 1\n\0b: 2", "character 0x0, which YAML does not allow"),
        ("\tprofile: small", "line 1: not valid YAML: found"),
        ("profile: 'small", "line 1: not valid YAML: found"),
        (f"profile: {'9' * 5000}", "4300 digits"),
        ("# caf\udce9\nprofile: small", "line 1: not UTF-8"),
        ("", "keys with values are needed"),
        ("- profile", "keys with values are needed"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        load_text(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file.*nowhere.yaml"):
        params.load(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.yaml"):
        params.load(tmp_path / "binary.yaml")


def test_the_same_text_is_parsed_once_and_another_at_once(tmp_path, monkeypatch):
    """Whatever the file's times say, and whatever its path."""
    first, other = (ROOT / "params.yaml").read_text(), tmp_path / "params.yaml"
    monkeypatch.setattr(params, "PARAMS", other)
    other.write_text(first)
    assert params.load(other) is params.load(other)
    other.write_text(first.replace("profile: small", "profile: gpt2 "))
    assert params.load(other).profile == "gpt2"
