"""A checkpoint of another profile, or older than what it is made of, is not taken away under a false card."""

import hashlib
import json
from pathlib import Path

import pytest
from closure import ROOT
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree
from ruamel.yaml import YAML

from stages.commands import export, finished, opened
from stages.core.process.errors import UserError
from stages.core.running import origins
from stages.core.running.origins import Origins

VARIANTS = {
    "original": {"windows": {"choose": "none"}, "surgery": {"method": "none"}, "finetune": {}},
    "softshare": {"windows": {"choose": "none"}, "surgery": {"method": "drop", "layers": 2}, "finetune": {}},
}
PROVENANCE = "artifacts/provenance.json"


def stage(name, reads, writes, hashes, keys=()):
    """What dvc.lock says of a stage; the hash of what it writes is the path itself unless `hashes` has another."""
    variants = {key: value for key, value in VARIANTS.items()}
    values = {key: variants if key == "variants" else variants[key.split(".")[1]][key.split(".")[2]] for key in keys}
    return {
        "cmd": f"python -m stages.run {name} --profile small --out there",
        "deps": [{"path": path, "md5": hashes.get(path, path)} for path in reads],
        "params": {"params.yaml": values},
        "outs": [{"path": path, "md5": hashes.get(path, path)} for path in writes],
    }


def finished_run():
    """A dvc.lock after a run of two variants; of a third one, which params.yaml has no more, figures are left."""
    hashes = {PROVENANCE: hashlib.md5(b"{}").hexdigest()}
    tree = Tree()
    for name in VARIANTS:
        tree.add((f"{name}.json",), Meta(), HashInfo("md5", f"metrics/perplexity/{name}.json"))
    tree.digest()
    hashes["metrics/perplexity"] = tree.hash_info.value
    checkpoint = Tree()
    checkpoint.add(("config.json",), Meta(), HashInfo("md5", hashlib.md5(b"{}").hexdigest()))
    checkpoint.digest()
    hashes |= {f"artifacts/finetuned/{name}": checkpoint.hash_info.value for name in VARIANTS}
    found = {"base": stage("base", ["data/model"], ["artifacts/model", PROVENANCE], hashes)}
    for name in [*VARIANTS, "gone"]:
        keys = [] if name == "gone" else [f"variants.{name}.{part}" for part in ("windows", "surgery", "finetune")]
        made, tuned, score = (
            f"artifacts/surgery/{name}",
            f"artifacts/finetuned/{name}",
            f"metrics/perplexity/{name}.json",
        )
        found[f"surgery@{name}"] = stage("surgery", ["artifacts/model", "stages/surgery.py"], [made], hashes, keys[:2])
        found[f"finetune@{name}"] = stage("finetune", ["artifacts/model", made], [tuned], hashes, keys[1:])
        found[f"perplexity@{name}"] = stage("perplexity", [tuned], [score], hashes)
    read = [PROVENANCE, "metrics/perplexity", "templates"]
    found["report"] = stage("report", read, ["metrics/variants"], hashes, ["variants"])
    return {"schema": "2.0", "stages": found}


def test_a_finished_run_is_of_one_piece():
    found = Origins(finished_run()["stages"])
    assert found.profile == "small" and found.newer("report") == [] == found.newer("finetune@softshare")
    said = found.said("finetune@softshare", "variants.softshare.")
    assert {key.rpartition(".")[2]: value for key, value in said.items()} == VARIANTS["softshare"]


@pytest.mark.parametrize(
    "stage, path, older",
    [
        ("base", "artifacts/model", {"finetune@softshare", "finetune@original", "report"}),
        ("surgery@original", "artifacts/surgery/original", {"finetune@original", "report"}),
        ("perplexity@original", "metrics/perplexity/original.json", {"report"}),
        ("perplexity@gone", "metrics/perplexity/gone.json", set()),
    ],
)
def test_what_was_made_anew_leaves_what_read_it_behind(stage, path, older):
    stages = finished_run()["stages"]
    (out,) = [out for out in stages[stage]["outs"] if out["path"] == path]
    out["md5"] = "another"
    found = Origins(stages)
    asked = {"finetune@softshare", "finetune@original", "report"}
    assert {name for name in asked if found.newer(name)} == older
    assert all(Path(path).is_relative_to(found.newer(name)[0]) for name in older)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with a finished run's dvc.lock and params.yaml, its provenance and the config of one checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("artifacts/finetuned/softshare").mkdir(parents=True)
    Path("artifacts/finetuned/softshare/config.json").write_text("{}")
    Path(PROVENANCE).write_text("{}")
    document = YAML(typ="safe").load((ROOT / "params.yaml").read_text()) | {"variants": VARIANTS, "profile": "small"}
    Path("params.yaml").write_text(json.dumps(document))  # JSON is YAML
    lock = finished_run()
    write(lock)
    return lock


def write(lock):
    Path("dvc.lock").write_text(json.dumps(lock))


def refusal(variant="softshare"):
    with pytest.raises(UserError) as caught:
        finished.checkpoint_of(variant)
    assert "\n" not in str(caught.value) and "make repro" in str(caught.value)
    return str(caught.value)


def test_what_belongs_together_is_taken(study):
    assert finished.checkpoint_of("softshare") == Path("artifacts/finetuned/softshare")


def test_a_study_that_is_no_more_what_its_stages_would_make_is_refused(study):
    stages, spec = study["stages"], YAML(typ="safe").load(Path("params.yaml").read_text())["profiles"]["small"]
    stages["extract"] = stage("extract", ["artifacts/model"], ["artifacts/moments"], {})
    stages["extract"]["params"] = {"params.yaml": {"profiles.small.extract": spec["extract"]}}
    asked = ["extract"], "small"
    finished.refuse_older_than(*asked, Origins(stages))
    finished.refuse_older_than(*asked, None)
    with pytest.raises(UserError, match="^profiles.small.extract has changed in params.yaml since stage extract ran"):
        changed = json.loads(json.dumps(stages))
        changed["extract"]["params"]["params.yaml"]["profiles.small.extract"] = {"max_tokens": 1}
        finished.refuse_older_than(*asked, Origins(changed))
    stages["base"]["outs"][0]["md5"] = "another"
    with pytest.raises(UserError, match="^what stage extract made is older than artifacts/model; `make repro`"):
        finished.refuse_older_than(*asked, Origins(stages))


def test_half_of_another_profile_is_refused(study, monkeypatch):
    """As after `make repro PROFILE=digits` that was stopped: the model is new, the variant is not."""
    base = study["stages"]["base"]
    base["cmd"] = base["cmd"].replace("--profile small", "--profile digits")
    base["outs"][0]["md5"] = "another.dir"
    write(study)
    assert refusal().startswith("profile = small: artifacts are of profile digits; say PROFILE=digits")
    monkeypatch.setenv("SHARED_FFN_PROFILE", "digits")
    assert refusal().startswith("VARIANT = softshare: its checkpoint is older than artifacts/model")
    assert not finished.figures_are_current(Origins.here())


def test_a_profile_that_the_artifacts_are_not_of_is_refused(study, monkeypatch):
    monkeypatch.setenv("SHARED_FFN_PROFILE", "digits")
    assert refusal().startswith("PROFILE = digits: artifacts are of profile small; say PROFILE=small")
    with pytest.raises(UserError, match="^PROFILE = digits: artifacts are of profile small"):
        opened.Opened.here()


def test_a_study_that_has_not_been_run_is_one_line(study):
    with pytest.raises(UserError, match="^artifacts/model/config.json is not there yet; `make repro` makes it$"):
        opened.Opened.here()


def test_a_recipe_that_has_changed_since_is_refused(study):
    path = Path("params.yaml")
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 3'))
    assert refusal().startswith("VARIANT = softshare: variants.softshare.surgery has changed in params.yaml")


def test_artifacts_that_dvc_does_not_know_are_refused(study):
    Path("artifacts/provenance.json").write_text('{"model": "another"}')
    assert refusal().startswith("VARIANT = softshare: artifacts are not those of dvc.lock")
    Path("artifacts/provenance.json").write_text("{}")
    del study["stages"]["finetune@softshare"]
    write(study)
    assert refusal().startswith("VARIANT = softshare: artifacts are not those of dvc.lock")


def test_files_that_are_not_what_their_stage_wrote_are_refused(study):
    """A changed tensor would go out under the figures of the whole checkpoint."""
    weights = Path("artifacts/finetuned/softshare/model.safetensors")
    weights.write_text("of another program")
    with pytest.raises(UserError, match="^VARIANT = softshare: artifacts/finetuned/softshare is not what its stage"):
        finished.checkpoint_of("softshare")
    weights.unlink()
    Path(PROVENANCE).unlink()
    with pytest.raises(UserError, match=f"^VARIANT = softshare: {PROVENANCE} is not there; `make verify`"):
        finished.checkpoint_of("softshare")


def test_a_path_is_no_variant(study):
    with pytest.raises(UserError, match="^VARIANT = ../model: params.yaml has original, softshare$"):
        finished.checkpoint_of("../model")


def test_figures_of_another_run_are_not_in_the_card(study):
    assert finished.figures_are_current(Origins.here()) and finished.figures_are_current(None)
    study["stages"]["perplexity@softshare"]["outs"][0]["md5"] = "another"
    write(study)
    assert not finished.figures_are_current(Origins.here())
    assert finished.checkpoint_of("softshare")


def test_a_lock_that_cannot_be_read_is_named(study):
    for text in ("stages: [", "", "3", "stages: 3"):
        origins.LOCK.write_text(text)
        with pytest.raises(UserError, match="cannot read dvc.lock: "):
            Origins.here()


@pytest.mark.parametrize("command", [export.main])
def test_a_variant_that_is_not_said_is_asked_for(command, study):
    with pytest.raises(UserError, match="^VARIANT is missing; params.yaml has original, softshare$"):
        command("", Path("out"))
