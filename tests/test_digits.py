"""The handwritten digits, the bundled ViT that has learnt them, and the choice of a profile by `make`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from closure import ROOT
from dvc.repo import Repo
from shrunk import attempt, run
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from stages.core.images import augmentation, digits, sources, table
from stages.core.process.errors import UserError
from stages.core.running import choice
from stages.core.settings import params
from stages.core.settings.images import Digits
from stages.core.tasks.images import ImageClassification

FILE, MODEL = ROOT / "data/digits/digits.parquet", ROOT / "data/digits/model"
SOURCE = Digits(kind="digits", file=str(FILE))


def test_the_table_is_what_scikit_learn_ships():
    theirs = load_digits()
    pixels, labels = digits.read(FILE)
    assert np.array_equal(pixels, theirs.images) and np.array_equal(labels, theirs.target)
    assert pixels.dtype == np.uint8 and FILE.stat().st_size < 60_000


def test_splits_share_no_image_and_test_is_the_last_540():
    _, labels = digits.read(FILE)
    train, validation, test = (digits.chosen(labels, split) for split in ("train", "validation", "test"))
    assert sorted([*train, *validation, *test]) == list(range(1797))
    assert np.array_equal(test, np.arange(1257, 1797)) and (len(train), len(validation)) == (1009, 248)
    counts = np.bincount(labels[:1257])
    assert np.array_equal(np.bincount(labels[validation]), counts // 5)


def test_pixels_reach_the_model_as_the_training_had_them(tmp_path):
    """Through PNG, table and image processor: -1 to 1, from 0 to 16."""
    config = table.json.loads((MODEL / "preprocessor_config.json").read_text())
    table.write(tmp_path / "test.parquet", sources.rows(SOURCE, "test"), config, sources.names(SOURCE))
    found = table.read(tmp_path / "test.parquet", 40).whole()
    pixels, labels = digits.read(FILE)
    assert torch.allclose(found.pixels[:, 0], torch.tensor(pixels[1257:1297]) / 8 - 1, atol=1e-6)
    assert np.array_equal(found.labels, labels[1257:1297])


def test_the_bundled_vit_is_small_and_right_on_94_percent_of_the_test_split(tmp_path):
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(MODEL).eval()
    assert (MODEL / "model.safetensors").stat().st_size <= 4e6 and model.config.num_hidden_layers == 12
    config = table.json.loads((MODEL / "preprocessor_config.json").read_text())
    table.write(tmp_path / "test.parquet", sources.rows(SOURCE, "test"), config, [])
    task, images = ImageClassification(), table.read(tmp_path / "test.parquet")
    found = task.measure(model, images, None)
    assert found["accuracy"] >= 0.94
    assert found["accuracy"] == accuracy_score(images.labels, task.logits(model, images).argmax(1))


def test_warped_images_stay_where_nothing_is_asked_and_move_by_whole_pixels():
    image = torch.rand(3, 1, 8, 8)
    assert torch.allclose(augmentation.warped(image, *[0.0] * 5, background=-1.0), image, atol=1e-5)
    torch.manual_seed(0)
    changed = augmentation.warped(image, 15.0, 0.2, 0.3, 1.0, 0.3, background=-1.0)
    assert changed.shape == image.shape and changed.min() >= -1 - 1e-5 and changed.max() <= 1.7
    # Every image is changed by amounts of its own.
    alike = augmentation.warped(image[:1].repeat(2, 1, 1, 1), 15.0, 0.2, 0.3, 1.0, 0.3, background=-1.0)
    assert (alike[0] - alike[1]).abs().max() > 0.01
    # A rotation turns about the centre, in pixels: what is the same on every side stays.
    ring = torch.zeros(1, 1, 8, 8)
    ring[..., 3:5, 3:5] = 1
    turned = augmentation.warped(ring, 45.0, *[0.0] * 4, background=0.0)
    assert torch.allclose(turned, turned.flip(-1).flip(-2), atol=1e-5)


# ------------------------------------------------------------------------------------------- the choice of a profile


@pytest.fixture
def chosen(monkeypatch):
    """Makes a name the chosen profile, as `make repro PROFILE=name` does, and undoes what that tells DVC."""
    from dvc.parsing.context import Context

    monkeypatch.setattr(Context, "load_from_vars", Context.load_from_vars)
    return lambda name: monkeypatch.setenv(params.PROFILE, name)


def commands(folder: Path) -> dict[str, str]:
    return {stage.name: stage.cmd for stage in Repo(folder).index.stages}


def test_dvc_resolves_the_graph_for_the_chosen_profile_and_no_file_changes(chosen, tmp_path):
    for name in ("dvc.yaml", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    run(tmp_path, "git", "init", "-q")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.yaml")}
    plain = commands(tmp_path)
    chosen("swin")
    choice.apply()
    found = commands(tmp_path)
    assert all(f"--profile {name} " in each["base"] for name, each in [("small", plain), ("swin", found)])
    gone = {name for name, variant in params.load(ROOT / "params.yaml").variants.items() if "swin" in variant.skip}
    assert "merged_8" in gone and {name.partition("@")[2] for name in plain.keys() - found.keys()} == gone
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.yaml")}


def test_a_profile_that_is_not_there_is_one_line_with_those_that_are(chosen):
    chosen("digitz")
    with pytest.raises(UserError, match="^PROFILE = digitz: params.yaml has small, digits, "):
        params.load(ROOT / "params.yaml")


def test_make_hands_the_profile_on_where_it_is_said(tmp_path):
    show = ["make", "-n", "-p", "help"]
    said = attempt(ROOT, *show, "PROFILE=digits").stdout
    assert "SHARED_FFN_PROFILE := digits" in said
    assert "SHARED_FFN_PROFILE" not in attempt(ROOT, "env", "PROFILE=other", *show).stdout
