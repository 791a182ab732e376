"""params.yaml is parsed by DVC once, and again once it has changed."""

from dvc.dependency import param
from dvc.fs import localfs

from stages.core.running import params_file


def test_a_file_is_parsed_again_where_it_has_changed_only(tmp_path, monkeypatch):
    parsed, theirs = [], param.load_path

    def load(path, fs, **options):
        parsed.append(path)
        return theirs(path, fs, **options)

    monkeypatch.setattr(param, "load_path", load)
    params_file.install()
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: 1}\n")
    assert param.read_param_file(localfs, str(path), ["a.b"], flatten=True) == {"a.b": 1}
    whole = param.read_param_file(localfs, str(path))
    whole["a"]["b"] = 5  # belongs to who asked
    assert param.read_param_file(localfs, str(path), ["a"]) == {"a": {"b": 1}} and len(parsed) == 1
    path.write_text("a: {b: 23}\n")
    assert param.read_param_file(localfs, str(path), ["a.b"], flatten=True) == {"a.b": 23} and len(parsed) == 2
