"""Pushing a variant: off unless asked; then every file of the export reaches a repository that is private."""

import json
from pathlib import Path

import hub_box
import huggingface_hub
import pytest
import tiny

from stages.commands import export, push
from stages.core.forms.structure import Sharing
from stages.core.process.errors import UserError

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(1200),
    "nested/README.md": b"---\nlicense: mit\n---\n# A card\n",
}


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A folder with a finished variant whose export is made up, and nobody logged in."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tiny.model("llama"), Sharing(), Path("artifacts/finetuned/mine"))

    def exported(variant, to, form, dtype, name):
        assert name == "me/small"  # a card that named the folder would open another's model
        for name, content in FILES.items():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(content)

    monkeypatch.setattr(export, "export", exported)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    return tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, and the token that it takes."""
    with hub_box.served(tmp_path / "hub") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_mine")
        yield tmp_path / "hub/models"


def test_unless_asked_it_lists_what_would_go_and_uploads_nothing(study, hub, capsys):
    push.main("mine", "me/small", "shared", "no")
    said = capsys.readouterr().out
    assert all(name in said and f"{len(content):,}" in said for name, content in FILES.items())
    assert f"{sum(map(len, FILES.values())):,} bytes in 3 files of exported/mine-shared" in said
    assert "would go to me/small" in said and "CONFIRM=yes" in said
    assert not hub.exists()


def test_confirmed_every_file_arrives_in_a_private_repository(study, hub, capsys):
    push.main("mine", "me/small", "dense", "yes")
    there = hub / "me/small"
    assert json.loads((there / ".visibility").read_text()) == "private"
    assert {
        str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*") if p.is_file() and p.name[0] != "."
    } == FILES
    assert "me/small/commit/" in capsys.readouterr().out


def test_what_an_earlier_upload_left_of_weights_and_code_is_gone_and_all_else_stays(study, hub, monkeypatch):
    """A repository with both forms of weights would be opened with those in one file."""
    push.main("mine", "me/small", "dense", "yes")
    there = hub / "me/small"
    (there / "modeling_old.py").write_text("")
    (there / "notes.txt").write_text("the owner's")
    monkeypatch.delitem(FILES, "model.safetensors")
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        monkeypatch.setitem(FILES, name, b"{}")
    Path("exported/mine-dense/model.safetensors").unlink()
    push.main("mine", "me/small", "dense", "yes")
    names = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file() and path.name[0] != "."}
    assert names == {*FILES, "notes.txt"}


def test_what_push_does_not_do_with_a_variable_is_said(study):
    with pytest.raises(UserError, match="^TO = there: push writes to exported/VARIANT-FORM; `make export` takes TO"):
        push.main("mine", "me/small", "dense", "no", to="there")


@pytest.mark.parametrize(
    ("repo", "form", "confirm", "said"),
    [
        ("small", "dense", "no", "^REPO = small: owner/name"),
        ("", "dense", "no", "^REPO is missing: owner/name"),
        ("me/small", "thin", "no", "^FORM = thin: dense or shared"),
        ("me/small", "dense", "maybe", "^CONFIRM = maybe: yes or no"),
        ("me/small", "dense", "yes", "^CONFIRM = yes: there is no token"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_exports_nothing(repo, form, confirm, said, study):
    with pytest.raises(UserError, match=said):
        push.main("mine", repo, form, confirm)
    assert not Path("exported").exists()


def test_a_hub_that_refuses_is_one_line(study, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match="^the hub did not take me/small: ") as caught:
        push.main("mine", "me/small", "dense", "yes")
    assert "\n" not in str(caught.value)
