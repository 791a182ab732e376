"""Images of users: folders, parquet files, and what is wrong with them, one line each."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import ViTImageProcessor

from stages.core.images import dataset, sources
from stages.core.images import table as images_table
from stages.core.process.errors import UserError
from stages.core.settings.images import ImageDataset

SPLITS = {"train": "train", "validation": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(seed: int) -> bytes:
    return sources.encoded(np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8))


def folder(root: Path, classes=("cat", "dog"), **left_out) -> Path:
    """Two images of each class in each split; `left_out` names a class that a split lacks."""
    for split in SPLITS:
        for number, name in enumerate(classes):
            if left_out.get(split) != name:
                (root / split / name).mkdir(parents=True)
                for image in range(2):
                    (root / split / name / f"{image}.png").write_bytes(png(10 * number + image))
    return root


def table(path: Path, images: list, labels: list) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


def parquet(path: Path) -> ImageDataset:
    split = {"train": "train[:1]", "validation": "train[1:2]", "test": "train[2:]"}
    return ImageDataset(kind="dataset", path="parquet", data_files={"train": str(path)}, **split)


def rows(source: ImageDataset, split: str = "test") -> list:
    return list(sources.rows(source, split))


def test_rows_in_the_order_of_their_labels_that_were_cut_are_refused():
    names, learnt = ["cat", "dog", "owl"], [0, 0, 1]
    for others, name in (([2, 2, 0], "owl"), ([7], 7)):
        said = f"of the {len(others)} test images have labels that no train image has, such as {name!r}: rows in the"
        with pytest.raises(UserError, match=said):
            images_table.refuse_other_labels({"train": learnt, "validation": [0, 1], "test": others}, names)
    # Where labels are many, a few are met in one split alone.
    images_table.refuse_other_labels({"train": learnt, "validation": [2, 0], "test": [1]}, names)


@pytest.mark.parametrize("named", ["folder", "files"])
def test_folders_of_images_give_files_as_they_are_with_the_class_as_label(named, tmp_path):
    root = folder(tmp_path / "mine")
    if named == "folder":
        source = ImageDataset(kind="dataset", path=str(root))
    else:
        files = {split: f"{root}/{split}/**" for split in SPLITS}
        source = ImageDataset(kind="dataset", path="imagefolder", data_files=files)
    assert dataset.read(source, "test") == [(png(0), 0), (png(1), 0), (png(10), 1), (png(11), 1)]
    assert sources.names(source) == ["cat", "dog"]


def test_a_class_that_a_split_lacks_leaves_the_numbers_of_the_others(tmp_path):
    root = folder(tmp_path / "mine", test="cat")
    files = {split: f"{root}/{split}/**" for split in SPLITS}
    source = ImageDataset(kind="dataset", path="imagefolder", data_files=files)
    assert dataset.read(source, "test") == [(png(10), 1), (png(11), 1)]


def test_the_first_images_of_a_folder_are_of_all_its_classes(tmp_path):
    """Every budget of images is the head of a split, and a folder has one class after the other."""
    for name in "abc":
        (tmp_path / "mine/train" / name).mkdir(parents=True)
        for image in range(12):
            (tmp_path / f"mine/train/{name}/{image:02}.png").write_bytes(png(100 * ord(name) + image))
    source = ImageDataset(kind="dataset", path=str(tmp_path / "mine"))
    found = rows(source, "train")
    assert found == rows(source, "train") and sorted(found) == sorted(dataset.read(source, "train"))
    assert {label for _, label in found[:12]} == {0, 1, 2}


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_an_image_of_more_than_8_bits_a_channel_is_refused(mode, tmp_path):
    file = io.BytesIO()
    Image.new(mode, (9, 7)).save(file, format="TIFF")
    path = table(tmp_path / "mine.parquet", [png(1), png(2), file.getvalue()], [0, 1, 0])
    with pytest.raises(
        UserError, match=r"row 0 of split 'train\[2:\]' of .* has an image of mode .*: 8 bits a channel"
    ):
        rows(parquet(path))


def test_a_photograph_that_a_camera_has_turned_is_read_upright():
    turned, exif = Image.new("RGB", (8, 8)), Image.Exif()
    turned.paste("white", (0, 0, 8, 4))  # the upper half
    exif[0x0112] = 6  # to be turned to the right by a quarter
    file = io.BytesIO()
    turned.save(file, format="PNG", exif=exif)
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False)
    pixels = images_table.Images([file.getvalue()], torch.zeros(1), processor, []).pixels([0])[0, 0]
    assert pixels[:, 4:].min() > 0.9 and pixels[:, :4].max() < 0.1  # the right half is white


def test_a_processor_with_one_mean_for_all_channels_reads_colours():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=0.5, image_std=0.5)
    assert images_table.Images([png(1)], torch.zeros(1), processor, []).pixels([0]).shape == (1, 3, 8, 8)


def test_a_photograph_stays_the_file_it_was(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, format="JPEG")
    path = table(tmp_path / "mine.parquet", [file.getvalue()] * 3, [0, 1, 2])
    assert rows(parquet(path)) == [(file.getvalue(), 2)]


@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        (None, 0, "row 1 of split 'train[2:]' of prepare.source needs an image in 'image', not null"),
        (png(0)[:60], 0, "row 1 of split 'train[2:]' of prepare.source has no image that can be read in 'image'"),
        (b"text", 0, "row 1 of split 'train[2:]' of prepare.source has no image that can be read in 'image'"),
        (png(0), None, "row 1 of split 'train[2:]' of prepare.source needs a whole number in 'label', not null"),
        (png(0), -1, "row 1 of split 'train[2:]' of prepare.source has -1 in 'label'; labels are counted from 0"),
    ],
)
def test_a_bad_row_is_one_line_with_split_row_and_column(image, label, said, tmp_path):
    path = table(tmp_path / "mine.parquet", [png(1), png(2), png(3), image], [0, 1, 0, label])
    with pytest.raises(UserError) as caught:
        rows(parquet(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_labels_that_are_no_numbers_and_columns_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match="needs a whole number in 'label', not str"):
        rows(parquet(table(tmp_path / "words.parquet", [png(1)] * 3, ["cat", "dog", "cat"])))
    source = parquet(table(tmp_path / "mine.parquet", [png(1)] * 3, [0, 1, 0]))
    with pytest.raises(UserError, match="cannot load split 'train\\[2:\\]', column 'picture' and 'label'"):
        rows(source.model_copy(update={"image": "picture"}))
    with pytest.raises(UserError, match="Unable to find"):
        rows(parquet(tmp_path / "none.parquet"))


def test_splits_that_share_rows_are_refused_at_the_door():
    with pytest.raises(ValidationError, match="overlap: no row may be in both"):
        ImageDataset(kind="dataset", path="imagefolder", train="train", validation="train[:10%]", test="test")
