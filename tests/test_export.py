"""An exported variant is a stock checkpoint that writes as the original is meant to."""

import json
from pathlib import Path

import pytest
import tiny
from closure import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.commands import export, finished
from stages.core.architecture import opening
from stages.core.forms.structure import Sharing
from stages.core.process.errors import UserError
from stages.core.text.tokenizer import open_tokenizer


@pytest.mark.parametrize("says", [True, False], ids=["generation config", "none"])
def test_an_export_writes_as_the_original_is_meant_to(says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = tiny.model("llama", vocab_size=2048, eos_token_id=3)
    original.save_pretrained("source")
    open_tokenizer(ROOT / "data" / "model").save_pretrained("source")
    path = tmp_path / "source/generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 3], "do_sample": True, "temperature": 0.6}))
    if not says:
        path.unlink()
    model, tokenizer = opening.open_source("source", None, None)
    model.save_pretrained("artifacts/model")
    tokenizer.save_pretrained("artifacts/tokenizer")
    snapshot = opening.open_snapshot(tmp_path / "artifacts/model")
    tiny.save(snapshot, Sharing(), tmp_path / "artifacts/finetuned/mine")
    export.main("mine", tmp_path / "exported")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="float32").eval()
    assert tiny.gap(found, snapshot) == 0
    ends = [3, 7] if says else 3
    written = GenerationConfig.from_pretrained(tmp_path / "exported")
    assert found.config.eos_token_id == written.eos_token_id == ends
    assert (written.temperature, bool(written.do_sample)) == ((0.6, True) if says else (written.temperature, False))
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["", ".", "..", "keep", "keep/notes.txt"])
def test_an_export_replaces_nothing_but_an_export(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("keep").mkdir()
    Path("keep/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="^TO = .*: a new folder or an earlier export is needed"):
        export.refuse_to_replace(Path(name))
    for free in ("new", "empty", "earlier"):
        Path(free).mkdir(exist_ok=free != "new")
    Path("earlier", export.RECORD).write_text("{}")
    for free in ("not/there", "empty", "earlier"):
        export.refuse_to_replace(Path(free))


def test_a_variant_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "FINISHED", tmp_path)
    with pytest.raises(UserError, match="^VARIANT = nope: params.yaml has original, softshare, "):
        export.main("nope", tmp_path / "exported")
    with pytest.raises(UserError, match="^VARIANT = softshare: .* is not there yet; `make repro` makes it$"):
        finished.checkpoint_of("softshare")
