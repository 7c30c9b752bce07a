import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import encode, photo, tar, write_json, write_photo

from intclip.data import load_dataset
from intclip.data.images import read_image
from intclip.data.layouts import index_tar, load_coco, load_folder, load_webdataset
from intclip.data.registry import kind_of
from intclip.data.sample import TarMember
from intclip.errors import DatasetError

# -- folders


def test_one_folder_a_label(tmp_path: Path) -> None:
    for name in ("sea/a.jpg", "sea/deep/b.png", "sun/c.jpg", ".cache/d.jpg", "sun/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch() if name.endswith("txt") else write_photo(tmp_path / name)
    dataset = load_folder(tmp_path)
    assert (dataset.task, dataset.taxonomy.names) == ("singlelabel", ("sea", "sun"))
    assert [s.id for s in dataset.splits["train"]] == ["sea/a.jpg", "sea/deep/b.png", "sun/c.jpg"]
    assert dataset.targets("train").tolist() == [[1, 0], [1, 0], [0, 1]]
    assert load_dataset(tmp_path).taxonomy.names == ("sea", "sun")
    assert set(load_folder(tmp_path, shares={"a": 0.5, "b": 0.5}).splits) == {"a", "b"}


def test_split_folders_and_taxonomy(tmp_path: Path) -> None:
    for name in ("train/happy/a.jpg", "val/sad/a.jpg"):
        write_photo(tmp_path / name)
    dataset = load_folder(tmp_path)
    assert dataset.taxonomy.names == ("happy", "sad")
    assert [s.id for samples in dataset.splits.values() for s in samples] == ["train/happy/a.jpg", "val/sad/a.jpg"]
    with pytest.raises(DatasetError, match="happy"):
        load_folder(tmp_path, taxonomy="mikels8")


def test_hollow_folders(tmp_path: Path) -> None:
    for make, fault in ((None, "no such folder"), ("", "has no folders named"), ("sea", "no photos")):
        folder = tmp_path / "root"
        if make is not None:
            (folder / make).mkdir(parents=True)
        with pytest.raises(DatasetError, match=fault):
            load_folder(folder)


# -- COCO


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_photo(tmp_path / name)
    return write_json(
        tmp_path / "instances.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)],
            "categories": [
                {"id": 7, "name": "person", "supercategory": "person"},
                {"id": 9, "name": "cat", "supercategory": "animal"},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]},
                {"id": 2, "image_id": 1, "category_id": 9},
                {"id": 3, "image_id": 2, "category_id": 7},
                {"id": 4, "image_id": 2, "category_id": 9},
            ],
        },
    )


def test_coco(coco: Path) -> None:
    dataset = load_coco(coco)
    assert dataset.taxonomy.names == ("person", "cat")
    assert list(dataset.taxonomy.levels.values())[1] == ("person", "animal")
    assert dataset.targets("train").tolist() == [[0, 1], [1, 1], [0, 0]]
    assert load_dataset(coco).splits["train"][0].image == coco.parent / "1.jpg"
    splits = load_coco({"train": coco, "val": coco}).splits
    assert list(splits) == ["train", "val"]
    assert len(load_coco(coco, shares={"a": 2 / 3, "b": 1 / 3}).splits["a"]) == 2


def test_wrong_coco(coco: Path) -> None:
    good = json.loads(coco.read_text())
    for changes, fault in (
        ({"annotations": [{"image_id": 4, "category_id": 7}]}, r"annotation 1: .*\b4\b"),
        ({"annotations": [{"image_id": 1, "category_id": 8}]}, "category 8"),
        ({"annotations": [{"image_id": 1}]}, "annotations 1: .*'category_id'"),
        ({"images": good["images"] * 2}, r"image 4: id 1 .*\(.*image 1\)"),
        ({"images": [{"id": 1, "file_name": "../1.jpg"}], "annotations": []}, "outside"),
        ({"images": [{"id": 1, "file_name": "9.jpg"}], "annotations": []}, r"1 of 1 photos .*9\.jpg \(.*, image 1\)"),
        ({"categories": [], "annotations": []}, "no categories"),
        ({"categories": None}, "wrong type"),
    ):
        coco.write_text(json.dumps({**good, **changes}))
        with pytest.raises(DatasetError, match=fault) as error:
            load_coco(coco)
        assert "\n" not in str(error.value)


# -- WebDataset


def test_webdataset(tmp_path: Path) -> None:
    one, two = encode(photo(1), "PNG"), encode(photo(2), "PNG")
    tar(
        tmp_path / "train-000.tar", {"s/001.png": one, "s/001.json": '{"labels": ["sea", "sun"]}', "s/001.txt": "hello"}
    )
    tar(tmp_path / "train-001.tar", {"002.png": two, "002.json": '["sun"]', "003.txt": "words", "003.cls": "sea"})
    tar(tmp_path / "val-000.tar", {"004.x.png": two, "004.json": '{"votes": {"sea": 0.5}}'})
    dataset = load_webdataset(tmp_path)
    assert dataset.taxonomy.names == ("sea", "sun")
    assert {split: [s.id for s in samples] for split, samples in dataset.splits.items()} == {
        "train": ["s/001", "002", "003"],
        "val": ["004"],
    }
    assert dataset.targets("train").tolist() == [[1, 1], [0, 1], [1, 0]]
    assert dataset.targets("val").tolist() == [[0.5, 0]]
    first, second, third = dataset.splits["train"]
    assert isinstance(first.image, TarMember)
    np.testing.assert_array_equal(np.asarray(read_image(first.image)), np.asarray(photo(1)))
    np.testing.assert_array_equal(np.asarray(read_image(second.image)), np.asarray(photo(2)))
    assert (first.text, third.text, third.image) == ("hello", "words", None)
    assert load_dataset(tmp_path / "train-000.tar").splits["train"][0].text == "hello"


def test_webdataset_numbers_need_a_taxonomy(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"1.jpg": encode(photo()), "1.cls": "2"})
    assert np.argmax(load_webdataset(path, taxonomy="sentiment3").targets("train")) == 2
    with pytest.raises(DatasetError, match=r"x\.tar.*taxonomy"):
        load_webdataset(path)


def test_tar_index_is_exact_with_long_names_folders_and_links(tmp_path: Path) -> None:
    long = "d" * 120 + "/" + "n" * 150
    path = tar(tmp_path / "x.tar", {f"{long}.jpg": b"photo", f"{long}.txt": b"text", ".hidden": b"x"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    index = index_tar(path)
    assert list(index) == [long]
    member = index[long]["jpg"]
    assert path.read_bytes()[member.offset : member.offset + member.size] == b"photo"


def test_wrong_tars(tmp_path: Path) -> None:
    good = tar(tmp_path / "good.tar", {"1.jpg": encode(photo()), "1.cls": "sea"})
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:700])
    (tmp_path / "text.tar").write_text("not a tar")
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(good, "good.tar")
    tar(tmp_path / "hollow.tar", {})
    tar(tmp_path / "labels.tar", {"1.json": '{"labels": ["sea"]}'})
    tar(tmp_path / "json.tar", {"1.jpg": b"x", "1.json": "{"})
    tar(tmp_path / "bare.tar", {"1.jpg": b"x"})
    tar(tmp_path / "latin.tar", {"1.jpg": b"x", "1.txt": "schön".encode("latin-1")})
    for name, fault in (
        ("none.tar", r"none\.tar"),
        ("cut.tar", "truncated|damaged"),
        ("text.tar", r"text\.tar"),
        ("empty.tar", r"empty\.tar"),
        ("packed.tar", r"packed\.tar"),
        ("hollow.tar", r"hollow\.tar"),
        ("labels.tar", "neither photo nor text"),
        ("json.tar", "sample '1'.*not JSON"),
        ("bare.tar", r"bare\.tar"),
        ("latin.tar", "not UTF-8"),
    ):
        with pytest.raises(DatasetError, match=fault) as error:
            load_webdataset(tmp_path / name)
        assert "\n" not in str(error.value)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 255)), min_size=1, max_size=12))
def test_damaged_tars_give_a_dataset_or_a_dataset_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = tar(tmp_path / "x.tar", {"1.jpg": encode(photo()), "1.cls": "sea", "2.txt": "text", "2.json": '["sun"]'})
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(bytes(content))
    try:
        load_webdataset(path)
    except DatasetError:
        return


def test_kinds_of_files(tmp_path: Path) -> None:
    for name, kind in (("a.csv", "table"), ("a.JSONL", "table"), ("a.json", "coco"), ("a.tar", "webdataset")):
        assert kind_of(tmp_path / name) == kind
    assert kind_of(tmp_path) == "folder"
    tar(tmp_path / "a.tar", {})
    assert kind_of(tmp_path) == "webdataset"
    (tmp_path / "train.csv").touch()
    assert kind_of(tmp_path) == "table"
    with pytest.raises(DatasetError, match=r"a\.docx"):
        kind_of(tmp_path / "a.docx")
