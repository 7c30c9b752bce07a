import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import write_photo
from PIL import Image

from intclip.data import load_dataset
from intclip.data.sample import Dataset
from intclip.data.tabular import TableLayout, load_table
from intclip.errors import DatasetError

NAN = float("nan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")):
        write_photo(tmp_path / name, index)
    return tmp_path


def write(path: Path, content: str | list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    """Write a table in the format of the suffix."""
    if isinstance(content, str):
        path.write_bytes(content.encode(encoding))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, content)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(content), path)
    else:
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(content[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(content)
    return path


def targets(dataset: Dataset, split: str = "train") -> list[list[float]]:
    return [row.tolist() for row in dataset.targets(split)]


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_dataset(folder: Path, suffix: str) -> None:
    rows = [
        {"image": "a.jpg", "labels": "sea; sun", "text": 'with, comma and "quotes"\nand a line'},
        {"image": "b.jpg", "labels": "sun", "text": "plain"},
        {"image": "sub/d.jpg", "labels": "", "text": "unlabelled"},
        {"image": "c.jpg", "labels": "[]", "text": "none holds"},
    ]
    dataset = load_table(write(folder / f"my.{suffix}", rows))
    assert (dataset.name, dataset.task, dataset.taxonomy.names) == ("my", "multilabel", ("sea", "sun"))
    np.testing.assert_array_equal(targets(dataset), [[1, 1], [0, 1], [NAN, NAN], [0, 0]])
    assert dataset.splits["train"][0].text == 'with, comma and "quotes"\nand a line'
    assert [s.id for s in dataset.splits["train"]] == ["a.jpg", "b.jpg", "sub/d.jpg", "c.jpg"]
    assert dataset.splits["train"][2].image == folder / "sub" / "d.jpg"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_and_shares(folder: Path, suffix: str) -> None:
    rows = [
        {"image": "a.jpg", "labels": ["sea", "sun"]},
        {"image": "b.jpg", "labels": []},
        {"image": "c.jpg", "labels": None},
    ]
    np.testing.assert_array_equal(
        targets(load_table(write(folder / f"x.{suffix}", rows))), [[1, 1], [0, 0], [NAN, NAN]]
    )
    rows = [{"image": "a.jpg", "votes": {"sea": 0.4, "sun": None}}, {"image": "b.jpg", "votes": {"sea": 1, "sun": 0.2}}]
    dataset = load_table(write(folder / f"x.{suffix}", rows), positive_share=0.4)
    np.testing.assert_allclose(targets(dataset), [[0.4, 0], [1, 0.2]], rtol=1e-6)
    assert dataset.positive_share == 0.4
    rows = [{"image": "a.jpg", "votes": [0.0, 0.5, 1.0]}, {"image": "b.jpg", "votes": None}]
    dataset = load_table(write(folder / f"x.{suffix}", rows), taxonomy="sentiment3")
    np.testing.assert_array_equal(targets(dataset), [[0, 0.5, 1], [NAN] * 3])


def test_one_column_a_label(folder: Path) -> None:
    text = "path,sea,sun,likes\na.jpg,1,0.5,300\nb.jpg,,true,20\nc.jpg,-1,no,12\n"
    dataset = load_table(write(folder / "x.csv", text))
    assert dataset.taxonomy.names == ("sea", "sun")  # likes hold no shares
    np.testing.assert_array_equal(targets(dataset), [[1, 0.5], [NAN, 1], [NAN, 0]])
    text = "path,Positive,NEGATIVE\na.jpg,1,0\n"
    dataset = load_table(write(folder / "x.csv", text), taxonomy="sentiment3")
    names = dataset.taxonomy.names
    row = dict(zip(names, targets(dataset)[0], strict=True))
    assert (row["positive"], row["negative"]) == (1, 0)
    assert np.isnan(row["neutral"])  # a label without a column is unknown


def test_a_column_of_shares_and_others_is_refused(folder: Path) -> None:
    """No label is lost by one wrong value, and a column of likes with some 0 and 1 is not a label."""
    for cells, row, value in (
        (("1", "0", "3"), 4, "3"),
        (("3", "1", "0"), 2, "3"),
        (("yes", "", "2026-11-21"), 4, "2026-11-21"),
        (("0", "1", "2"), 4, "2"),
        (("0,5", "1", "1"), 2, "0,5"),
        (("no", "a long day", ""), 3, "a long day"),
    ):
        lines = [f'{name}.jpg,"{cell}",0' for name, cell in zip("abc", cells, strict=True)]
        path = write(folder / "x.csv", "\n".join(["image,pets,food", *lines]))
        with pytest.raises(DatasetError, match=r"0, 1.*taxonomy") as error:
            load_table(path)
        assert one_line(error).startswith(f"{path}, row {row}, column 'pets': {value!r} is not a share")
        assert load_table(path, taxonomy=str(write(folder / "food.yaml", "- food\n"))).taxonomy.names == ("food",)


def test_a_column_of_many_lines_is_named_in_one(tmp_path):
    (tmp_path / "t.csv").write_text('"one\n\ntwo\n",{}\nx,y\n'.format("z" * 1000))
    with pytest.raises(DatasetError, match=r"one two, z+; .*NAME") as error:
        load_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_columns_that_are_no_labels_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = ",image,pets,likes,taken,by\n0,a.jpg,1,300,2026-11-21,Ann\n1,b.jpg,0,,2026-11-22,\n2,c.jpg,-1,5,,Bo\n"
    path = write(folder / "x.csv", text)
    with caplog.at_level("WARNING", logger="intclip.data"):
        assert load_table(path).taxonomy.names == ("pets",)
    assert f"{path}: ignored columns that hold no 0, 1 or share: , likes, taken, by" in caplog.text
    caplog.clear()
    load_table(write(folder / "y.csv", "image,labels,by\na.jpg,sea,Ann\n"))
    assert caplog.text == "", "where a column says labels, the others never were labels"


def test_semicolons_and_tabs_part_cells_where_there_is_no_comma(folder: Path) -> None:
    for text in (
        'image;labels\na.jpg;"sea;sun"\nb.jpg;sun, moon\n',
        "image\tlabels\na.jpg\tsea;sun\nb.jpg\tsun, moon\n",
    ):
        dataset = load_table(write(folder / "x.csv", text))
        assert dataset.taxonomy.names == ("sea", "sun", "sun, moon")
        assert targets(dataset) == [[1, 1, 0], [0, 0, 1]]
    assert load_table(write(folder / "x.csv", "text,label\na;b,sea\n")).splits["train"][0].text == "a;b"
    with pytest.raises(DatasetError, match=r"row 2.*\b3 .*\b2 .*';'"):
        load_table(write(folder / "x.csv", "image;labels\na.jpg;sea;sun\n"))


def test_single_label_tables(folder: Path) -> None:
    assert load_table(write(folder / "x.csv", "image,label\na.jpg,sea\nb.jpg,sun\n")).task == "singlelabel"
    assert load_table(write(folder / "x.csv", "image,label\na.jpg,sea\nb.jpg,sun;sea\n")).task == "multilabel"
    assert load_table(write(folder / "x.csv", "image,labels\na.jpg,sea\nb.jpg,sun\n")).task == "multilabel"
    path = write(folder / "x.csv", "image,labels\na.jpg,joy\n")
    assert load_table(path, taxonomy="ekman6").task == "singlelabel"
    assert load_table(path, taxonomy="ekman6", task="multilabel").task == "multilabel"


def test_two_labels_where_one_holds_are_refused(folder: Path) -> None:
    path = write(folder / "x.csv", "image,labels\na.jpg,joy\nb.jpg,joy;fear\n")
    with pytest.raises(DatasetError, match=r"row 3.*'fear', 'joy'"):
        load_table(path, taxonomy="ekman6")
    assert load_table(path, taxonomy="ekman6", task="multilabel").task == "multilabel"
    shares = [{"image": "a.jpg", "votes": {"joy": 0.5, "fear": 0.5}}, {"image": "b.jpg", "votes": {"joy": 1}}]
    assert load_table(write(folder / "x.jsonl", shares), taxonomy="ekman6").task == "singlelabel"


def test_text_alone(folder: Path) -> None:
    dataset = load_table(write(folder / "x.csv", "text,label\nhello,sea\nworld,sun\n"))
    assert [(s.id, s.image, s.text) for s in dataset.splits["train"]] == [
        ("row 2", None, "hello"),
        ("row 3", None, "world"),
    ]


def test_splits_by_column_by_file_and_by_share(folder: Path) -> None:
    text = "image,labels,split\na.jpg,sea,train\nb.jpg,sun,test\nc.jpg,sea,\n"
    dataset = load_table(write(folder / "x.csv", text))
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 2, "test": 1}
    several = folder / "several"
    several.mkdir()
    write(several / "train.csv", "image,labels\n../a.jpg,sea\n")
    write(several / "test.jsonl", [{"image": "a.jpg", "labels": ["sun"]}])
    dataset = load_dataset(several, missing="keep")
    assert dataset.taxonomy.names == ("sea", "sun")
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.name == "several"
    rows = [{"text": f"t{i}", "labels": "sea" if i % 2 else "sun"} for i in range(20)]
    dataset = load_table(write(folder / "y.csv", rows), shares={"train": 0.8, "test": 0.2})
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 16, "test": 4}
    assert len(load_table({"dev": folder / "y.csv"}).splits["dev"]) == 20
    with pytest.raises(DatasetError, match=r"x\.csv.*train, test.*`shares`"):
        load_table(folder / "x.csv", shares={"train": 0.8, "test": 0.2})


def test_blanks_around_the_name_of_a_split_mean_nothing(folder: Path) -> None:
    path = write(folder / "x.csv", "image, labels, split\na.jpg, sea, train\nb.jpg, sun, val \nc.jpg, sun, \n")
    assert {split: len(samples) for split, samples in load_table(path).splits.items()} == {"train": 2, "val": 1}


def test_renamed_columns_and_other_folders(folder: Path) -> None:
    path = write(folder / "elsewhere.csv", "shot,why,note\nd.jpg,sea,x\n")
    dataset = load_table(path, layout=TableLayout({"image": "shot", "labels": "why", "text": "note"}, folder / "sub"))
    assert dataset.splits["train"][0].image == folder / "sub" / "d.jpg"
    assert dataset.splits["train"][0].text == "x"
    with pytest.raises(DatasetError, match=r"'shoot'.*shot, why, note"):
        load_table(path, layout=TableLayout({"image": "shoot"}))
    with pytest.raises(DatasetError, match="'photograph'"):
        load_table(path, layout=TableLayout({"image": "shot", "photograph": "shot"}))


def test_encodings(folder: Path) -> None:
    text = "image,labels\na.jpg,schön\n"
    for encoding in ("utf-8", "utf-8-sig"):
        assert load_table(write(folder / "x.csv", text, encoding)).taxonomy.names == ("schön",)
    path = write(folder / "x.csv", text, "latin-1")
    assert load_table(path, layout=TableLayout(encoding="latin-1")).taxonomy.names == ("schön",)
    with pytest.raises(DatasetError, match=r"x\.csv, row 2.*0xf6.*encoding='latin-1'") as error:
        load_table(path)
    one_line(error)
    assert "`--set encoding=latin-1` (intclip data" in str(error.value)
    assert "`--set data.options.encoding=latin-1` (intclip train)" in str(error.value)
    path = write(folder / "x.csv", text, "utf-16")
    assert load_table(path, layout=TableLayout(encoding="utf-16")).taxonomy.names == ("schön",)
    with pytest.raises(DatasetError, match=r"x\.csv.*UTF-16.*encoding=utf-16"):
        load_table(path)
    with pytest.raises(DatasetError, match=r"x\.csv, row 1.*NUL"):
        load_table(path, layout=TableLayout(encoding="latin-1"))
    for encoding in ("utf-88", "undefined"):
        with pytest.raises(DatasetError, match=encoding):
            load_table(path, layout=TableLayout(encoding=encoding))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, NAN])
def test_a_share_that_parts_nothing_is_refused(folder: Path, share: float) -> None:
    path = write(folder / "x.csv", "image,labels\na.jpg,sea\n")
    with pytest.raises(DatasetError, match="positive_share="):
        load_table(path, positive_share=share)


WRONG_CSV = {
    "wrong columns": ("file_size,labels\n1,sea\n", "neither a photo .* columns: file_size, labels; .*--set 'columns={"),
    "no labels": ("image,size\na.jpg,300\n", "size"),
    "misspelt column": ("image,Positve\na.jpg,1\n", "'Positve'.*mean 'positive'"),
    "unknown label": ("image,labels\na.jpg,positive\nb.jpg,postive\n", r"row 3: .*'postive'.*'positive'"),
    "too many cells": ("image,labels\na.jpg,positive,negative\n", "row 2: 3 .* 2 "),
    "too few cells": ("image,labels\na.jpg\n", "row 2: 1 .* 2 "),
    "same column twice": ("image,image\na.jpg,b.jpg\n", "two columns have the same name"),
    "no rows": ("image,labels\n", "no rows"),
    "no content": ("", "no rows"),
    "share": ("image,positive\na.jpg,7\n", "row 2, column 'positive': '7'"),
    "photo gone": ("image,labels\na.jpg,positive\nz.jpg,positive\n", r"1 of 2 .*z\.jpg \(.*row 3\).*=skip"),
    "empty row": ("image,text,labels\na.jpg,,positive\n,,positive\n", "row 3: "),
    "id twice": ("id,image,labels\n1,a.jpg,positive\n1,b.jpg,positive\n", r"row 3: .*'1'.*row 2"),
    "one label a row": ("image,labels\na.jpg,positive\na.jpg,negative\n", r"row 3: .*row 2.*';'"),
    "quote left open": ('image,labels\na.jpg,"positive\n', "not CSV"),
    "null byte in path": ("image,labels\na\0.jpg,positive\n", "row 2: .*NUL"),
    "null byte in label": ("image,labels\na.jpg,positive\nb.jpg,posi\0tive\n", "row 3: .*NUL"),
    "json cell": ("image,labels\na.jpg,[positive\n", r"csv, row 2, labels '\[positive'.*JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_CSV)
def test_wrong_csv_names_file_row_and_remedy(folder: Path, case: str) -> None:
    text, fault = WRONG_CSV[case]
    path = write(folder / "wrong.csv", text)
    with pytest.raises(DatasetError, match=fault) as error:
        load_table(path, taxonomy="sentiment3")
    assert str(path) in one_line(error)


WRONG_JSONL = {
    "not an object": ("[1]", "row 1: "),
    "not JSON": ('{"image": "a.jpg", "labels": ["sea"]}\n{"image"', r"jsonl, row 2: .*JSON .* 9\)"),
    "not JSON, in several lines": ('{"image": "a.jpg", "labels": "[\\n1,\\n"}', r"row 1, labels .*JSON"),
    "path of the wrong type": ('{"image": 3, "labels": ["sea"]}', r"photo.*\b3\b"),
    "text of the wrong type": ('{"text": ["a"], "labels": ["sea"]}', "its text is"),
    "label of the wrong type": ('{"image": "a.jpg", "labels": [["sea"], "b"]}', "row 1: .*sea"),
    "true as a label": ('{"image": "a.jpg", "labels": [true, "b"]}', "row 1: True"),
    "number without taxonomy": ('{"image": "a.jpg", "labels": [3]}', "no row has a label"),
    "shares of the wrong type": ('{"image": "a.jpg", "votes": 3, "labels": ["a"]}', "neither label to share"),
    "share out of range": ('{"image": "a.jpg", "votes": {"a": 1e999}}', "not a share"),
    "labels that differ by case": ('{"image": "a.jpg", "labels": ["Sea", "sea"]}', "'sea': duplicate name .*'Sea'"),
    "NUL in a label": ('{"image": "a.jpg", "labels": ["pe\\u0000ts"]}', "NUL"),
    "empty label": ('{"image": "a.jpg", "labels": [" ", "sea"]}', "empty"),
    "number too long": ('{"image": "a.jpg", "labels": ' + "9" * 5000 + "}", "JSON"),
    "nested without end": ("[" * 100_000, "row 1: .*JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_JSONL)
def test_wrong_json_lines(folder: Path, case: str) -> None:
    text, fault = WRONG_JSONL[case]
    with pytest.raises(DatasetError, match=fault) as error:
        load_table(write(folder / "wrong.jsonl", text))
    one_line(error)


def test_numbers_as_labels_need_a_taxonomy(folder: Path) -> None:
    path = write(folder / "x.jsonl", [{"image": "a.jpg", "labels": [2]}, {"image": "b.jpg", "labels": 0}])
    assert np.argmax(load_table(path, taxonomy="sentiment3").targets("train"), axis=1).tolist() == [2, 0]
    path = write(folder / "x.jsonl", [{"image": "a.jpg", "labels": [3]}])
    with pytest.raises(DatasetError, match="label number 3 is outside"):
        load_table(path, taxonomy="sentiment3")


def test_wrong_parquet_and_wrong_files(folder: Path) -> None:
    (folder / "x.parquet").write_bytes(b"PAR1 nonsense PAR1")
    (folder / "x.xlsx").touch()
    (folder / "hollow").mkdir()
    for root, fault in (
        ("x.parquet", r"x\.parquet"),
        ("x.xlsx", r"x\.xlsx .*table"),
        ("none.csv", r"none\.csv"),
        ("hollow", "/hollow "),
    ):
        with pytest.raises(DatasetError, match=fault) as error:
            load_table(folder / root)
        one_line(error)
    path = write(folder / "x.parquet", [{"image": 5, "labels": ["a"]}])
    with pytest.raises(DatasetError, match=r"x\.parquet, row 1.*\b5\b"):
        load_table(path)


def test_posts_that_share_a_photo_are_samples_of_their_own(folder: Path) -> None:
    path = write(folder / "x.csv", "image,text,labels\na.jpg,one,sea\na.jpg,two,sun\na.jpg,three,sun\n")
    assert [s.id for s in load_table(path).splits["train"]] == ["a.jpg", "a.jpg#2", "a.jpg#3"]


def test_missing_photos_can_be_skipped_or_kept(folder: Path) -> None:
    path = write(folder / "x.csv", "image,labels\na.jpg,sea\nz.jpg,sea\n")
    assert [s.id for s in load_table(path, missing="skip").splits["train"]] == ["a.jpg"]
    assert [s.id for s in load_table(path, missing="keep").splits["train"]] == ["a.jpg", "z.jpg"]
    with pytest.raises(DatasetError, match=r"x\.csv.*\b1 photos"):
        load_table(write(folder / "x.csv", "image,labels\nz.jpg,sea\n"), missing="skip")


def test_own_taxonomy_file(folder: Path) -> None:
    (folder / "mine.yaml").write_text("- sea\n- sun\n- moon\n")
    path = write(folder / "x.csv", "image,labels\na.jpg,moon\n")
    assert targets(load_table(path, taxonomy=str(folder / "mine.yaml"))) == [[0, 0, 1]]


def test_two_columns_of_one_label_are_refused(folder: Path) -> None:
    (folder / "mine.yaml").write_text("- {name: sea, aliases: [ocean]}\n- sun\n")
    path = write(folder / "x.csv", "image,ocean,sea,sun\na.jpg,1,0,0\n")
    with pytest.raises(DatasetError, match=r"x\.csv.*'ocean'.*'sea'.*'sea' of mine"):
        load_table(path, taxonomy=str(folder / "mine.yaml"))
    path = write(folder / "x.csv", "image,ocean,sun\na.jpg,1,0\n")
    assert targets(load_table(path, taxonomy=str(folder / "mine.yaml"))) == [[1, 0]]


# -- hostile files: any other error than DatasetError is a bug of the parser

HEADERS = st.sampled_from(
    [
        b"",
        b"image,labels\n",
        b"image,a,b\n",
        b"text,votes\n",
        b'{"image": "a.jpg", "labels": ',
        b"PAR1",
        b"\xef\xbb\xbf",
    ]
)


@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    HEADERS,
    st.binary(max_size=200),
    st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
    st.sampled_from([None, "sentiment3"]),
)
def test_random_bytes(tmp_path: Path, header: bytes, content: bytes, suffix: str, taxonomy: str | None) -> None:
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(header + content)
    try:
        load_table(path, taxonomy=taxonomy)
    except DatasetError:
        return


CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["a.jpg", "[]", "[1]", "{}", "1", "0.5", "-1", "nan", "1e400", ";", "positive", "\x00"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["image", "text", "labels", "label", "votes", "split", "id", "positive", "a", "b"])


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=5), max_size=4), st.sampled_from([None, "sentiment3"]))
def test_random_json_lines(tmp_path: Path, rows: list[dict[str, Any]], taxonomy: str | None) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8", errors="surrogatepass")
    try:
        dataset = load_table(path, taxonomy=taxonomy, missing="keep")
    except DatasetError:
        return
    for samples in dataset.splits.values():
        for sample in samples:
            known = sample.targets[~np.isnan(sample.targets)]
            assert ((known >= 0) & (known <= 1)).all()


@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(KEYS, min_size=1, max_size=5),
    st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=4),
    st.sampled_from([None, "sentiment3"]),
)
def test_random_cells(tmp_path: Path, header: list[str], rows: list[list[str]], taxonomy: str | None) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *(row[: len(header)] for row in rows)])
    path = tmp_path / "fuzz.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", errors="replace")
    try:
        load_table(path, taxonomy=taxonomy, missing="keep")
    except DatasetError:
        return


COMPOSED, APART = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("on_disk", "written"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_accents_of_macos_are_those_of_others(tmp_path, on_disk, written):
    """Regression: "é" as one character and as two were two labels, and a photo named the other way was missing."""
    for name in (on_disk, "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"
    table.write_text(f"image,labels\n{written}.png,{written}\nb.png,{on_disk}\n", encoding="utf-8")
    dataset = load_dataset(table)
    assert dataset.taxonomy.names == (COMPOSED,)
    assert dataset.targets("train").tolist() == [[1], [1]]
    assert dataset.splits["train"][0].image == tmp_path / f"{on_disk}.png"
    (tmp_path / "l.yaml").write_text(f"name: l\nclasses:\n  - {on_disk}\n", encoding="utf-8")
    assert load_dataset(table, taxonomy=str(tmp_path / "l.yaml")).targets("train").tolist() == [[1], [1]]
    wide = tmp_path / "w.csv"
    wide.write_text(f"text,{written},rest\na,1,0\nb,0,1\n", encoding="utf-8")
    assert load_dataset(wide).taxonomy.index(on_disk) == load_dataset(wide).taxonomy.index(written)


def test_two_columns_of_one_meaning_are_refused(tmp_path):
    """Regression: the second of "Labels" and "labels" was lost."""
    (tmp_path / "t.csv").write_text("text,Labels,labels\na,joy,fear\n")
    with pytest.raises(DatasetError, match=r"t\.csv.*'Labels', 'labels'"):
        load_dataset(tmp_path / "t.csv")


def test_rows_of_empty_cells_are_skipped(tmp_path):
    (tmp_path / "t.csv").write_text("text,labels\na,joy\nb,fear\n,\n , \n")
    assert len(load_dataset(tmp_path / "t.csv").splits["train"]) == 2


def test_lists_as_pandas_writes_them_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("text,labels\na,\"['joy', 'fear']\"\n")
    with pytest.raises(DatasetError, match=r"t\.csv, row 2, labels .*'joy', 'fear'.*';'") as refusal:
        load_dataset(tmp_path / "t.csv")
    assert "\n" not in str(refusal.value)
