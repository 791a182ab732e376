"""Profiles gpt2 and smollm2 against a hub on this machine: the stages that fetch, and all of them through DVC.

`make test-hub` runs the latter, their budgets cut; `HUB_SHAPE=real` gives the models their real width, for a machine
with time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_box
import pyarrow.parquet as pq
import pytest
from closure import ROOT
from safetensors.torch import load_file
from shrunk import STUDY, commit, edit, environment, keep, new_clone, run

MODELS = {"gpt2": "openai-community/gpt2", "smollm2": "HuggingFaceTB/SmolLM2-135M"}
KEPT = ("original", "softshare", "merged_4", "compressed_4", "dropped", "svd_weighted")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The address of the hub, and where its libraries may keep what they fetch."""
    folder = tmp_path_factory.mktemp("hub")
    hub_box.fill(folder / "served", hub_box.REAL if os.environ.get("HUB_SHAPE") == "real" else hub_box.SMALL)
    with hub_box.served(folder / "served") as address:
        yield {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}


def cut(values, profile: str) -> None:
    """Smaller budgets; sources, lengths, precision and recipes stay the profile's."""
    values["profile"], found = profile, values["profiles"][profile]
    found["extract"].update(max_tokens=512, moment_tokens=1024)
    found["search"].update(max_tokens=2048)
    found["finetune"].update(epochs=1, max_tokens=8192, validation={"times": 1, "max_tokens": 2048})
    found["reviews"].update(max_train=16, max_test=8)
    found["sentiment"].update(epochs=1)
    found["perplexity"].update(max_tokens=4096)
    found["perplexity"]["seed_protocol"].update(rows=4)
    found["generate"].update(new_tokens=4)
    found["latency"].update(prompt_tokens=16, new_tokens=4, warmup=0, repeats=2)
    found["latency"]["seed_protocol"].update(repeats=1)
    found["summarize"].update(articles=2, new_tokens=8)
    found["summarize"]["seed_protocol"].update(new_tokens=8)
    keep(values, KEPT)


FETCH = """
import os, sys
from pathlib import Path
from stages import articles, base, prepare, reviews

data, tokenizer = Path("data"), Path("tokenizer")
for folder in sys.argv[1:]:
    os.chdir(folder)
    profile = os.path.basename(folder)
    base.main(profile, Path("model"), tokenizer, Path("provenance.json"))
    prepare.main(profile, data / "lexicon.yaml", tokenizer, Path("text"))
    reviews.main(profile, data / "lexicon.yaml", data / "reviews.yaml", tokenizer, Path("reviews"))
    articles.main(profile, data / "lexicon.yaml", data / "summaries.yaml", Path("articles"))
"""


@pytest.fixture(scope="module")
def fetched(hub, tmp_path_factory):
    """Where one process has run the stages that fetch: a folder for each profile, of its name."""
    above = tmp_path_factory.mktemp("fetched")
    for profile in MODELS:
        (above / profile).mkdir()
        (above / profile / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        edit(above / profile, lambda values: cut(values, profile))
    outside = {key: value for key, value in environment().items() if key != "HF_HUB_OFFLINE"} | hub
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *(above / profile for profile in MODELS)], cwd=above,
        env=outside | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return above


@pytest.mark.parametrize("profile", MODELS)
def test_the_stages_that_fetch(profile, hub, fetched):
    folder = fetched / profile
    known = json.loads((folder / "provenance.json").read_text())
    assert known["model"] == MODELS[profile] and len(known["resolved_revision"]) == 40
    cached = Path(hub["HF_HOME"], "hub", f"models--{MODELS[profile].replace('/', '--')}")
    (weights,) = cached.glob("snapshots/*/model.safetensors")
    kept, theirs = load_file(folder / "model/model.safetensors"), load_file(weights)
    for name, value in theirs.items():
        if not name.endswith("attn.bias"):
            found = kept[name if name in kept else f"transformer.{name}"]
            assert found.equal(value.float())
    rows = {name: pq.read_metadata(folder / f"{name}.parquet").num_rows for name in (
        "text/test_rows", "text/other", "reviews/train", "reviews/test", "articles/train", "articles/test",
    )}  # fmt: skip
    assert rows.pop("text/other") > 10_000
    assert rows == {
        "text/test_rows": 300, "reviews/train": 16, "reviews/test": 8, "articles/train": 0, "articles/test": 100,
    }  # fmt: skip


@pytest.mark.hub
@pytest.mark.parametrize("profile", MODELS)
def test_a_profile_runs_from_the_hub_to_the_report(profile, hub, tmp_path):
    folder = new_clone(tmp_path)
    run(folder, "git", "checkout", "-q", "params.yaml")
    edit(folder, lambda values: cut(values, profile))
    commit(folder, profile)
    outside = {key: value for key, value in environment().items() if key != "HF_HUB_OFFLINE"} | hub
    done = subprocess.run(STUDY, cwd=folder, env=outside, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    known = json.loads((folder / "artifacts/provenance.json").read_text())
    assert known["model"] == MODELS[profile] and len(known["resolved_revision"]) == 40
    found = json.loads((folder / "metrics/summary.json").read_text())
    assert set(found) == set(KEPT)
    for name in KEPT:
        assert found[name]["perplexity"]["after"] <= found[name]["perplexity"]["before"]
    assert (folder / "metrics/report.html").stat().st_size > 10_000
    assert not subprocess.run(
        ["dvc", "repro"], cwd=folder, env=outside | {"HF_HUB_OFFLINE": "1"}, text=True, capture_output=True
    ).stdout.count("Running stage")
