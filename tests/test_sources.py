"""Files of any spelling, age, encoding and content: the text that is there, or one line that says what is wrong."""

import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.core.process.errors import UserError
from stages.core.settings import splits
from stages.core.settings.texts import ArticleDataset, Dataset, LabelledDataset, Other, OtherDataset, Prepare
from stages.core.text import corpus, sources

TEXT = ["café été", "naïve"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def source(file, path="text", **more):
    return Dataset(
        kind="dataset", path=path, data_files={"rows": str(file)}, train="rows[:50%]", validation="rows[50%:75%]",
        test="rows[75%:]", **more,
    )  # fmt: skip


def rows(file, path="text", **more):
    """All rows of a file; the split is the whole."""
    whole = source(file, path, **more).model_copy(update={"train": "rows"})
    return sources.rows(whole, "train", file)


def write(file, texts):
    kind = file.suffix[1:]
    if kind == "txt":
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    elif kind == "json":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "csv":
        pd.DataFrame({"text": texts}).to_csv(file, index=False)
    else:
        pq.write_table(pa.table({"text": texts}), file)


FORMATS = {"text": "txt", "json": "json", "csv": "csv", "parquet": "parquet"}


@pytest.mark.parametrize("path", FORMATS)
def test_a_file_replaced_within_its_modification_time_is_read_anew(path, here):
    file = here / f"mine.{FORMATS[path]}"
    for texts in (["one old", "two old"], ["one new", "two new"]):
        write(file, texts)
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert rows(file, path) == texts
    assert not list((here / "cache").iterdir())  # nothing is left of what was made of them


def test_a_folder_whose_file_is_replaced_is_read_anew(here):
    (here / "mine").mkdir()
    found = Dataset(kind="dataset", path="mine", train="train", validation="validation", test="test")
    for word in ("old", "new"):
        for split in ("train", "validation", "test"):
            write(here / "mine" / f"{split}.parquet", [f"{split} {word}"])
            os.utime(here / "mine" / f"{split}.parquet", (1_000_000_000, 1_000_000_000))
        assert sources.rows(found, "test", here) == [f"test {word}"]


SPELLINGS = {
    "dot": "./data/all.txt",
    "twice": "data//all.txt",
    "up": "data/../data/all.txt",
    "absolute": "{here}/data/all.txt",
    "address": "file://{here}/data/all.txt",
    "symbolic link": "link.txt",
    "folder's link": "folder/all.txt",
    "hard link": "hard.txt",
    "glob": "data/*.txt",
    "any depth": "**/all.txt",
    "letters": "data/[a]ll.txt",
}


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_one_file_by_another_name_is_one_file(spelt, here):
    (here / "data").mkdir()
    write(here / "data/all.txt", TEXT)
    write(here / "data.txt", TEXT)
    (here / "link.txt").symlink_to(here / "data/all.txt")
    (here / "folder").symlink_to(here / "data")
    os.link(here / "data/all.txt", here / "hard.txt")
    other = SPELLINGS[spelt].format(here=here)
    files = {"a": "data/all.txt", "b": other, "c": "data.txt"}
    assert splits.overlap("a", "b", files) and splits.overlap("c+b", "a[:50%]", files)
    assert not splits.overlap("a", "c", files)
    assert not splits.overlap("a[:50%]", "b[50%:]", files) or spelt == "any depth"
    with pytest.raises(ValidationError, match="train = a and test = b overlap: no row may be in both"):
        Dataset(kind="dataset", path="text", data_files=files, train="a", validation="c", test="b")


def test_names_of_files_that_are_not_there_yet():
    assert splits.overlap("a", "b", {"a": "x/all.txt", "b": "./x/../x/all.txt"})
    assert not splits.overlap("a", "b", {"a": "x/all.txt", "b": "x/other.txt"})


def test_a_collection_overlaps_any_of_its_files(here):
    for name in ("one", "two"):
        write(here / f"{name}.txt", TEXT)
    files = {"a": "*.txt", "b": "two.txt", "c": "one.txt"}
    assert splits.overlap("a[:10%]", "b[90%:]", files) and not splits.overlap("b", "c", files)


def test_files_of_a_data_set_s_folder_are_found_there(here):
    (here / "set").mkdir()
    write(here / "set/all.txt", TEXT)
    assert splits.overlap("a", "b", {"a": "all.txt", "b": f"{here}/set/all.txt"}, "set")


HUB = "datasets/owner/name"


@pytest.mark.parametrize(
    "other",
    [
        f"hf://{HUB}@main/all.txt", f"hf://{HUB}@refs%2Fheads%2Fmain/all.txt", f"hf://{HUB}/x/../all.txt",
        f"https://huggingface.co/{HUB}/resolve/main/all.txt?download=true",
    ],
)  # fmt: skip
def test_a_file_of_a_hub_has_one_name(other):
    files = {"a": f"hf://{HUB}/all.txt", "b": other, "c": f"hf://{HUB}@v1/all.txt", "d": f"hf://{HUB}/other.txt"}
    assert splits.overlap("a", "b", files)
    assert not splits.overlap("a", "c", files) and not splits.overlap("a", "d", files)


def test_all_is_every_split():
    assert splits.overlap("all", "test") and splits.overlap("train", "all[90%:]")
    assert not splits.overlap("all[:90%]", "all[90%:]")


BAD = {"null": None, "int": 7, "list": ["a"], "float": 0.5, "dict": {"a": 1}, "bool": True}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_text_is_named_by_split_row_and_column(kind, here):
    values = pa.array(["a", None, "c"]) if kind == "null" else pa.array([BAD[kind]] * 3)
    row = 1 if kind == "null" else 0
    table = {"text": values, "highlights": ["x"] * 3, "article": values, "label": [0, 1, 0]}
    pq.write_table(pa.table(table), here / "t.parquet")
    place = f"^row {row} of split 'rows' of"
    files = {"path": "parquet", "data_files": {"rows": "t.parquet", "other": "o.parquet"}, "kind": "dataset"}
    with pytest.raises(UserError, match=f"{place} prepare.source needs a text in 'text', not {kind}$"):
        rows(here / "t.parquet", "parquet")
    with pytest.raises(UserError, match=f"{place} articles.source needs a text in 'article', not {kind}$"):
        sources.pairs(ArticleDataset(**files, test="rows"), "test", here, here)
    with pytest.raises(UserError, match=f"{place} reviews.source needs a text in 'text'"):
        sources.labelled(LabelledDataset(**files, train="rows", test="other"), "train", here, here)


@pytest.mark.parametrize("label", [True, 0.5, "1", None, [1]])
def test_what_is_no_label_is_named(label, here):
    pq.write_table(pa.table({"text": ["a", "b"], "label": pa.array([label, label])}), here / "t.parquet")
    files = {"path": "parquet", "data_files": {"rows": "t.parquet", "other": "o.parquet"}, "kind": "dataset"}
    with pytest.raises(UserError, match="^row 0 of split 'rows' of reviews.source needs .*'label', not str and "):
        sources.labelled(LabelledDataset(**files, train="rows", test="other"), "train", here, here)


def encoded(file, path, encoding):
    lines = {
        "text": TEXT, "csv": ["text", *TEXT], "json": [json.dumps({"text": text}, ensure_ascii=False) for text in TEXT],
    }[path]  # fmt: skip
    file.write_bytes("\r\n".join([*lines, ""]).encode(encoding))


@pytest.mark.parametrize("path", ["text", "json", "csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_another_encoding_is_named_as_the_cause_and_read_once_it_is_set(encoding, path, here):
    encoded(here / "mine", path, encoding)
    with pytest.raises(UserError, match="'utf-8' codec can't decode byte .* set prepare.source.encoding to that"):
        rows(here / "mine", path)
    assert rows(here / "mine", path, encoding=encoding) == TEXT


@pytest.mark.parametrize("path", ["text", "json", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_mark_and_line_ends_are_no_text(encoding, path, here):
    encoded(here / "mine", path, encoding)
    assert rows(here / "mine", path) == TEXT


def test_utf_16_without_a_mark_is_not_taken_for_text(here):
    (here / "mine.txt").write_bytes("plain\nwords\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="row 0 of split .* has a NUL character in 'text': set prepare.source.encoding"):
        rows(here / "mine.txt")
    assert rows(here / "mine.txt", encoding="utf-16-le") == ["plain", "words"]


@pytest.mark.parametrize("path", FORMATS)
def test_an_empty_file_is_called_empty(path, here):
    (here / "mine").touch()
    with pytest.raises(UserError, match="prepare.source.data_files.rows = .*mine: the file is empty"):
        rows(here / "mine", path)


def test_a_file_of_another_format_has_its_cause_in_the_line(here):
    write(here / "mine.txt", TEXT)
    with pytest.raises(UserError, match="Parquet magic bytes not found"):
        rows(here / "mine.txt", "parquet")
    with pytest.raises(UserError, match="JSON parse error"):
        rows(here / "mine.txt", "json")
    with pytest.raises(UserError, match="Unable to find"):
        rows(here / "none.txt")


@pytest.mark.parametrize(
    ("path", "file", "asked"),
    [
        ("text", "mine.txt", False), ("parquet", "hf://datasets/o/n/a.parquet", True), ("o/n", "a.parquet", True),
        ("folder/here", "mine.txt", False),
    ],
)  # fmt: skip
def test_the_hub_is_looked_for_where_it_is_needed(path, file, asked, here, monkeypatch):
    (here / "folder/here").mkdir(parents=True)
    found = []
    monkeypatch.setattr(sources.hub, "settle", lambda: found.append(path))
    with pytest.raises(UserError, match="cannot load split"):
        sources.rows(source(file, path), "train", here)
    assert bool(found) == asked


def test_rows_that_are_there_twice():
    found = corpus.shared(["one ", "", " two", "three", "one", " "], {"one", "three"})
    assert found == {"rows": 4, "shared_rows": 3, "characters": 14, "shared_characters": 11}
    assert corpus.shared([], set()) == dict.fromkeys(found, 0)


def other(file, split="rest", **more):
    return {"kind": "dataset", "path": "text", "data_files": {"rest": str(file)}, "test": split, **more}


def test_the_other_text_is_read_like_any(here):
    write(here / "mine.txt", TEXT)
    assert sources.other_rows(OtherDataset(**other("mine.txt", "rest[1:]")), here) == TEXT[1:]
    for texts, message in (
        ([""], r"split 'rest' of prepare\.other\.source has no text in 'text'"),
        (None, "cannot load"),
    ):
        file = here / "none.txt"
        if texts:
            write(file, texts)
        else:
            file.unlink()
        with pytest.raises(UserError, match=message):
            sources.other_rows(OtherDataset(**other(file)), here)


def test_the_other_text_is_none_of_the_splits():
    splits = {"train": "rest[:50%]", "validation": "rest[50%:60%]", "test": "rest[60%:70%]"}
    first = other("mine.txt") | splits
    assert Prepare(source=first, other={"source": other("mine.txt", "rest[70%:]")}).other.source.column == "text"
    assert Prepare(source=first, other={"source": other("yours.txt")}).other and Prepare(source=first).other is None
    with pytest.raises(ValidationError, match=r"other.source.test = rest\[65%:\] and source.test = .* share rows"):
        Prepare(source=first, other={"source": other("mine.txt", "rest[65%:]")})


def test_an_encoding_is_checked_at_the_door(here):
    with pytest.raises(ValidationError, match="encoding = klingon is none that Python knows"):
        source("mine.txt", encoding="klingon")
    with pytest.raises(ValidationError, match="encoding = latin-1: path must be text, json, csv, not parquet"):
        source("mine.parquet", "parquet", encoding="latin-1")


def test_a_file_in_the_home_folder_is_found_by_its_tilde(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write(here / "mine.txt", TEXT)
    assert rows("~/mine.txt") == TEXT


@pytest.mark.parametrize(
    ("train", "test", "shares"),
    [
        ("train[:30]", "train[50%:]", True),
        ("train[:20]", "train[50%:]", False),
        ("train[:90%]", "train[-3:]", False),
        ("train[:30]", "train[-15:]", True),
        ("train[:30]", "train[-10:]", False),
    ],
)
def test_splits_by_rows_and_by_percent_are_compared_once_the_rows_are_known(train, test, shares, here):
    pd.DataFrame({"article": ["An article."] * 40, "highlights": ["A summary."] * 40}).to_parquet("pairs.parquet")
    source = ArticleDataset(
        kind="dataset", path="parquet", data_files={"train": "pairs.parquet"}, train=train, test=test
    )
    if not shares:
        assert sources.pairs(source, "test", here, here)
        return
    with pytest.raises(UserError) as caught:
        sources.pairs(source, "test", here, here)
    assert str(caught.value) == (
        f"params.yaml: articles.source: train = {train} and test = {test} overlap, as there are 40 rows: "
        "no row may be in both"
    )


@pytest.mark.parametrize(("asked", "shares"), [("test[20%:]", True), ("test[50%:]", False), ("test[-5:]", False)])
def test_the_other_text_is_compared_by_rows_once_they_are_known(asked, shares, here):
    write(here / "mine.parquet", [f"Text {row}." for row in range(40)])
    cut = {"train": "rows[:10]", "validation": "rows[10:15]", "test": "rows[15:20]"}
    first = Dataset(kind="dataset", path="parquet", data_files={"rows": "mine.parquet"}, **cut)
    second = OtherDataset(kind="dataset", path="parquet", data_files={"test": "mine.parquet"}, test=asked)
    if not shares:
        assert len(sources.other_rows(second, here, first)) == (20 if "%" in asked else 5)
        return
    with pytest.raises(
        UserError, match=r"other.source.test = test\[20%:\] and prepare.source.train = rows\[:10\] share"
    ):
        sources.other_rows(second, here, first)


def test_the_other_text_is_known_by_its_file_whatever_a_split_is_called(here):
    def section(asked: str, file: str = "rows.parquet") -> Prepare:
        cut = {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"}
        first = Dataset(kind="dataset", path="parquet", data_files={"train": "rows.parquet"}, **cut)
        second = OtherDataset(kind="dataset", path="parquet", data_files={"test": file}, test=asked)
        return Prepare(source=first, other=Other(source=second))

    with pytest.raises(
        ValidationError, match=r"other.source.test = test\[90%:\] and source.test = train\[90%:\] share"
    ):
        section("test[90%:]")
    assert section("test[90%:]", "others.parquet").other.source.test == "test[90%:]"


def test_rows_are_counted_only_where_splits_are_of_the_same_file():
    asked = []

    def shares(one, other, there=None):
        asked.clear()
        files = {"a": "one.parquet", "b": "two.parquet"}
        cuts = splits.Cut(one, files, "parquet"), splits.Cut(other, there or files, "parquet")
        found = splits.share_by_rows(*cuts, lambda cut, name: asked.append((cut.files[name], name)) or 16)
        return found, len(asked)

    assert shares("a[:9]", "a[50%:]") == (True, 2) and shares("a[:9]", "a[-9:]") == (True, 2)
    assert shares("a[:8]", "a[50%:]") == (False, 2) and shares("a[:7]", "a[-9:]") == (False, 2)
    assert shares("a[:9]", "b[50%:]") == (False, 0) and shares("a[:9]", "a[9:]") == (False, 0)
    assert shares("a[:9]", "x[50%:]", {"x": "one.parquet"}) == (True, 2)
    assert shares("a[:9]", "a[50%:]", {"a": "two.parquet"}) == (False, 0)
