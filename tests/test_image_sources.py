"""Images of users: folders, parquet files, and what is wrong with them, one line each."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from stages.core.images import sources
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


@pytest.mark.parametrize("named", ["folder", "files"])
def test_folders_of_images_give_files_as_they_are_with_the_class_as_label(named, tmp_path):
    root = folder(tmp_path / "mine")
    if named == "folder":
        source = ImageDataset(kind="dataset", path=str(root))
    else:
        files = {split: f"{root}/{split}/**" for split in SPLITS}
        source = ImageDataset(kind="dataset", path="imagefolder", data_files=files)
    assert rows(source) == [(png(0), 0), (png(1), 0), (png(10), 1), (png(11), 1)]
    assert sources.names(source) == ["cat", "dog"]


def test_a_class_that_a_split_lacks_leaves_the_numbers_of_the_others(tmp_path):
    root = folder(tmp_path / "mine", test="cat")
    files = {split: f"{root}/{split}/**" for split in SPLITS}
    source = ImageDataset(kind="dataset", path="imagefolder", data_files=files)
    assert rows(source) == [(png(10), 1), (png(11), 1)]


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
