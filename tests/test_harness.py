"""The harness scores a shared checkpoint on the local task, without a network."""

import json
from pathlib import Path

import pytest
import tiny
from closure import ROOT

from stages.commands import harness
from stages.core.architecture.opening import open_snapshot
from stages.core.forms import structure
from stages.core.forms.structure import Sharing
from stages.core.text.tokenizer import open_tokenizer


def test_a_shared_checkpoint_runs_on_the_local_task(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    sharing = Sharing(groups=[[4, 5, 6]], rank=2, biases="own")
    model = open_snapshot(ROOT / "data/model")
    structure.install(tiny.view(model), sharing)
    tiny.save(model, sharing, Path("artifacts/finetuned/shared"))
    open_tokenizer(ROOT / "data/model").save_pretrained("artifacts/tokenizer")
    harness.main("shared", "reviews", Path("found.json"))
    (scores,) = json.loads(Path("found.json").read_text())["results"].values()
    assert any(key.startswith("acc") and 0 <= value <= 1 for key, value in scores.items())


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(harness.UserError, match="pip install lm_eval"):
        harness.main("softshare", "reviews", Path("nowhere"))
