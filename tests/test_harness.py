"""The harness scores a shared checkpoint on the local task, without a network."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import tiny
import torch
from closure import ROOT

from stages.commands import export, harness
from stages.core.architecture.opening import open_snapshot
from stages.core.forms import structure
from stages.core.forms.structure import Sharing
from stages.core.text.tokenizer import open_tokenizer


def test_a_shared_checkpoint_runs_on_the_local_task(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    Path("params.yaml").symlink_to(ROOT / "params.yaml")
    sharing = Sharing(groups=[[4, 5, 6]], rank=2, biases="own")
    model = open_snapshot(ROOT / "data/model")
    structure.install(tiny.view(model), sharing)
    tiny.save(model, sharing, Path("artifacts/finetuned/shared"))
    open_tokenizer(ROOT / "data/model").save_pretrained("artifacts/tokenizer")
    harness.main("shared", "reviews", Path("found.json"))
    (scores,) = json.loads(Path("found.json").read_text())["results"].values()
    assert any(key.startswith("acc") and 0 <= value <= 1 for key, value in scores.items())


@pytest.mark.parametrize("form", ["dense", "shared"])
def test_an_export_is_opened_as_it_is(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sharing = Sharing(groups=[[0, 1]], rank=2, biases="own")
    model = tiny.model("mistral", vocab_size=2048)
    structure.install(tiny.view(model), sharing)
    tiny.save(model, sharing, Path("artifacts/finetuned/shared"))
    open_tokenizer(ROOT / "data/model").save_pretrained("artifacts/tokenizer")
    export.main("shared", Path("out"), form, "bfloat16")
    for source, kind in (("shared", torch.float32), ("out", torch.bfloat16)):
        found, tokenizer = harness.open_variant(source)
        assert {p.dtype for p in found.parameters()} == {kind} and len(tokenizer) == 2048
        assert tiny.gap(found.float(), model) <= (0 if source == "shared" else 0.5)


def test_image_classifiers_are_told_before_anything_is_opened(monkeypatch):
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, Mock())
    sys.modules["lm_eval.tasks"].TaskManager.return_value.all_tasks = ["reviews"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SHARED_FFN_PROFILE", "digits")
    with pytest.raises(harness.UserError, match="profile digits: its models classify images"):
        harness.main("softshare", "reviews", Path("nowhere"))


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setattr(harness, "open_variant", lambda variant: (None, None))
    with pytest.raises(harness.UserError, match="pip install lm_eval"):
        harness.main("softshare", "reviews", Path("nowhere"))
    with pytest.raises(harness.UserError, match="^TASK is missing: reviews, which needs no network, or"):
        harness.main("softshare", "", Path("nowhere"))
