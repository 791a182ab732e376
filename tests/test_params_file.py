"""params.yaml is parsed by DVC once, and again once it has changed."""

import pytest
from dvc.dependency import param
from dvc.fs import localfs

from stages.core.running import params_file


def test_a_file_is_parsed_again_where_it_has_changed_only(tmp_path, monkeypatch):
    parsed, theirs = [], param.load_path

    def load(path, fs, **options):
        parsed.append(path)
        return theirs(path, fs, **options)

    monkeypatch.setattr(param, "load_path", load)
    monkeypatch.setattr(param, "read_param_file", param.read_param_file)
    params_file.install()
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 1}\n")
    assert param.read_param_file(localfs, str(path), ["a.b"], flatten=True) == {"a.b": 1}
    whole = param.read_param_file(localfs, str(path))
    whole["a"]["b"] = 5  # belongs to who asked
    assert param.read_param_file(localfs, str(path), ["a"]) == {"a": {"b": 1}} and len(parsed) == 1
    path.write_text("a: {b: 23}\n")
    assert param.read_param_file(localfs, str(path), ["a.b"], flatten=True) == {"a.b": 23} and len(parsed) == 2


KEYS = [["a.b", "a.c", "d"], ["d.e.*"], ["a.c.0"], ["a.missing", "d"], ["a"], ["n.1"]]


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_values_are_those_that_dvc_finds(keys, tmp_path, monkeypatch):
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 1, c: [2, 3]}\nd: {e: {f: x}}\nn: {1: one}\n")
    expected = param.read_param_file(localfs, str(path), keys, flatten=True)
    monkeypatch.setattr(param, "load_path", param.load_path)
    monkeypatch.setattr(param, "read_param_file", param.read_param_file)
    params_file.install()
    found = param.read_param_file(localfs, str(path), keys, flatten=True)
    assert found == expected and list(found) == list(expected)
    for value in found.values():
        if isinstance(value, dict):
            value.clear()  # belongs to who asked
    assert param.read_param_file(localfs, str(path), keys, flatten=True) == expected
