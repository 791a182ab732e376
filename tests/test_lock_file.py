"""dvc.lock as `make repro` writes it is, byte for byte, what DVC writes."""

import random
from types import SimpleNamespace

import pytest
from closure import ROOT
from dvc.utils.serialize import dumps_yaml, modify_yaml
from ruamel.yaml import YAML

from stages.core.running import lock_file

LOCK = (ROOT / "dvc.lock").read_text()
STAGES = YAML(typ="safe").load(LOCK)["stages"]
TAKEN = random.Random(0).sample(sorted(STAGES), 4)


def by_dvc(folder, text, stage):
    """What DVC's own means make of it."""
    path = folder / "dvc.lock"
    path.write_text(text)
    with modify_yaml(path) as data:
        data["stages"] = data.get("stages", {})
        data["stages"].update(stage)
    return path.read_text()


def part(names):
    return dumps_yaml({"schema": "2.0", "stages": {name: STAGES[name] for name in names}})


@pytest.mark.parametrize("name", TAKEN)
def test_a_stage_takes_the_place_of_its_old_lines_or_comes_last(name, tmp_path):
    others = [other for other in sorted(STAGES) if "@" not in other or other.endswith("@original")][:12]
    changed = {name: {**STAGES[name], "cmd": "another: 'command' # of " + 30 * "many words "}}
    for text in (part([*others[:5], name, *others[5:]]), part([each for each in others if each != name])):
        assert lock_file.replaced(text, changed) == by_dvc(tmp_path, text, changed)
        assert lock_file.replaced(text, {name: STAGES[name]}) == by_dvc(tmp_path, text, {name: STAGES[name]})


def test_the_committed_file_stays_as_it_is():
    for name in TAKEN:
        assert lock_file.replaced(LOCK, {name: STAGES[name]}) == LOCK


@pytest.mark.parametrize(
    "text", ["", "schema: '2.0'\n", LOCK + "datasets:\n- name: a\n", "stages:\n  a:\n    cmd: b\n", LOCK[:-1]]
)
def test_a_file_of_another_form_is_left_to_dvc(text):
    assert lock_file.replaced(text, {"a": {"cmd": "b"}}) is None


def test_what_did_not_change_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "dvc.lock"
    path.write_text(part(TAKEN))
    tracked = []
    scm = SimpleNamespace(track_file=tracked.append)
    lock = SimpleNamespace(path=str(path), relpath="dvc.lock", repo=SimpleNamespace(scm_context=scm))
    monkeypatch.setattr("dvc.stage.serialize.to_lockfile", lambda stage: stage)
    before = path.stat()
    assert lock_file.write(lock, [{TAKEN[0]: STAGES[TAKEN[0]]}])
    assert path.stat().st_ino == before.st_ino and not tracked
    assert lock_file.write(lock, [{TAKEN[0]: {"cmd": "b"}}, {"new": {"cmd": "c"}}])
    assert tracked == ["dvc.lock"] and path.read_text().endswith("  new:\n    cmd: c\n")
    assert [each.name for each in tmp_path.iterdir()] == ["dvc.lock"]
