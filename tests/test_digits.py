"""The handwritten digits, the bundled ViT that has learnt them, and the choice of a profile by `make`."""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from closure import ROOT
from dvc.repo import Repo
from shrunk import attempt, run
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from stages.commands import export
from stages.core.architecture import opening
from stages.core.architecture.view import ModelView
from stages.core.forms import checkpoint
from stages.core.forms.structure import Sharing, install
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


def test_splits_are_blocks_in_the_official_order_and_test_is_the_last_540():
    _, labels = digits.read(FILE)
    train, validation, test = (digits.chosen(labels, split) for split in ("train", "validation", "test"))
    assert np.array_equal(np.concatenate([train, validation, test]), np.arange(1797))
    assert (len(train), len(validation), len(test)) == (1000, 257, 540)
    # Blocks by writer hold every digit about as often.
    assert np.bincount(labels[validation], minlength=10).min() >= 20


def test_pixels_reach_the_model_as_the_training_had_them(tmp_path):
    """Through PNG, table and image processor: -1 to 1, from 0 to 16."""
    config = table.json.loads((MODEL / "preprocessor_config.json").read_text())
    table.write(tmp_path / "test.parquet", sources.rows(SOURCE, "test"), config, sources.names(SOURCE))
    found = table.read(tmp_path / "test.parquet", 40).whole()
    pixels, labels = digits.read(FILE)
    assert torch.allclose(found.pixels[:, 0], torch.tensor(pixels[1257:1297]) / 8 - 1, atol=1e-6)
    assert np.array_equal(found.labels, labels[1257:1297])


def test_images_decoded_by_several_threads_are_the_same_in_order(tmp_path, monkeypatch):
    config = table.json.loads((MODEL / "preprocessor_config.json").read_text())
    table.write(tmp_path / "test.parquet", islice(sources.rows(SOURCE, "test"), 30), config, [])
    found, order, used = table.read(tmp_path / "test.parquet"), [*range(29, 9, -1), 3], []
    one = found._processed(order)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    pool = table.ThreadPoolExecutor
    monkeypatch.setattr(table, "ThreadPoolExecutor", lambda count: used.append(count) or pool(count))
    assert torch.equal(found.pixels(order), one) and used == [3]
    found.files[12] = b"no image"
    with pytest.raises(UserError, match="image 12 cannot be read"):
        found.pixels(order)


def test_the_bundled_vit_is_small_and_right_on_97_percent_of_the_test_split(tmp_path):
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(MODEL).eval()
    assert (MODEL / "model.safetensors").stat().st_size <= 4e6 and model.config.num_hidden_layers == 12
    config = table.json.loads((MODEL / "preprocessor_config.json").read_text())
    table.write(tmp_path / "test.parquet", sources.rows(SOURCE, "test"), config, [])
    task, images = ImageClassification(), table.read(tmp_path / "test.parquet")
    found = task.measure(model, images, None).figures
    assert found["accuracy"] >= 0.97
    assert found["accuracy"] == accuracy_score(images.labels, task.logits(model, images).argmax(1))


STRANGER = """
import json
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

assert find_spec("stages") is None
for form in ("dense", "shared"):
    model = AutoModelForImageClassification.from_pretrained(form, trust_remote_code=form == "shared").eval()
    pictures = [Image.open(path) for path in sorted(Path("pictures").iterdir())]
    pixels = AutoImageProcessor.from_pretrained(form)(pictures, return_tensors="pt")["pixel_values"]
    answers = model(pixel_values=pixels).logits.argmax(1).tolist()
    said = {"image": pictures[0]}
    exec(Path(form, "README.md").read_text().split("```python")[1].split("```")[0], said)
    assert said["logits"].argmax(1).tolist() == answers[:1]
    print(json.dumps([type(model).__name__, answers]))
"""


def test_exports_answer_the_same_where_nothing_of_this_project_is(tmp_path, monkeypatch):
    """The stock class for the dense form, the module beside the weights for the shared one; with the processor.

    What the model card says opens them does.
    """
    shared, sharing = ModelView(opening.open_snapshot(MODEL)), Sharing(groups=[[2, 3], [6, 7, 8]])
    install(shared, sharing)
    monkeypatch.chdir(tmp_path)
    checkpoint.save(shared, sharing, tmp_path / "artifacts/finetuned/mine")
    config = json.loads((MODEL / "preprocessor_config.json").read_text())
    table.processor(config).save_pretrained("artifacts/tokenizer")
    rows = list(islice(sources.rows(SOURCE, "test"), 60))
    Path("pictures").mkdir()
    for number, (file, _) in enumerate(rows):
        Path(f"pictures/{number:03}.png").write_bytes(file)
    table.write(Path("test.parquet"), rows, config, [])
    images = table.read(Path("test.parquet"))
    wanted = ImageClassification().logits(shared.model, images).argmax(1).tolist()
    assert len(set(wanted)) > 1
    for form in ("dense", "shared"):
        export.main("mine", Path(form), form)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    lines = run(tmp_path, sys.executable, "-I", "-c", STRANGER).splitlines()
    (dense, answers), (other, others) = map(json.loads, lines[-2:])
    assert dense == "ViTForImageClassification" != other and answers == others == wanted


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


def test_bent_images_stay_without_an_amount_and_are_bent_each_by_a_field_of_its_own():
    image = torch.rand(1, 1, 8, 8).repeat(3, 1, 1, 1)
    assert torch.allclose(augmentation.bent(image, 0.0, background=-1.0), image, atol=1e-5)
    torch.manual_seed(0)
    changed = augmentation.bent(image, 0.5, background=-1.0)
    assert changed.shape == image.shape and changed.min() >= -1 - 1e-5 and changed.max() <= 1 + 1e-5
    assert min((changed[i] - changed[i - 1]).abs().max() for i in range(3)) > 0.01
    # An image of the background alone has nothing to bend.
    assert (augmentation.bent(torch.full((2, 1, 8, 8), -1.0), 2.0, background=-1.0) == -1).all()


def test_mixed_images_keep_the_shares_of_their_labels():
    pixels, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.eye(4)
    assert augmentation.mixed(pixels, labels, 0.0) == (pixels, labels)
    torch.manual_seed(0)
    mixed, shares = augmentation.mixed(pixels, labels, 0.5)
    assert torch.equal(mixed.flatten(1), shares) and torch.allclose(shares.sum(1), torch.ones(4))
    assert 0 < shares[0, 0] < 1 and (shares > 0).sum() == 8


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
    assert "SHARED_FFN_PROFILE := digits" in attempt(ROOT, "env", "PROFILE=digits", *show).stdout
    assert "SHARED_FFN_PROFILE" not in attempt(ROOT, "env", "-u", "PROFILE", *show).stdout
