"""EmoSet-8 and MultiEmo-Bench from files in their layout."""

import csv
import json

import numpy as np
import pytest
from makers import write_photo

from intclip.data import load_dataset
from intclip.data.emoset import load_emoset, load_multiemo
from intclip.errors import DatasetError

EMOTIONS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


@pytest.fixture
def emoset(tmp_path):
    for split, emotions in (("train", EMOTIONS), ("val", EMOTIONS[:3]), ("test", EMOTIONS[5:])):
        rows = []
        for number, emotion in enumerate(emotions):
            name = f"{emotion}_{split}{number:05d}"
            write_photo(tmp_path / "image" / emotion / f"{name}.jpg")
            rows.append([emotion, name, f"image/{emotion}/{name}.jpg", f"annotation/{emotion}/{name}.json"])
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    (tmp_path / "info.json").write_text("{}")
    return tmp_path


def test_emoset(emoset, monkeypatch):
    dataset = load_emoset(emoset)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 8, "val": 3, "test": 3}
    assert (dataset.task, dataset.taxonomy.names) == ("singlelabel", EMOTIONS)
    np.testing.assert_array_equal(dataset.targets("train"), np.eye(8))
    assert dataset.splits["test"][0].image == emoset / "image/excitement/excitement_test00000.jpg"
    (emoset / "EmoSet").symlink_to(emoset)
    monkeypatch.setenv("INTCLIP_DATA", str(emoset))
    assert len(load_dataset("emoset8").splits["train"]) == 8


def test_emoset_as_windows_and_without_ids(emoset):
    rows = [["anger", r"image\anger\anger_train00001.jpg", r"annotation\anger\x.json"]]
    (emoset / "val.json").write_text(json.dumps(rows))
    (sample,) = load_emoset(emoset).splits["val"]
    assert sample.id == "image/anger/anger_train00001.jpg"


@pytest.mark.parametrize(
    "rows",
    [
        {"a": 1},
        [5],
        [[]],
        [["joyous", "image/a.jpg"]],
        [["anger", "x.json"]],
        [["anger", "../a.jpg"]],
        [["anger", "gone.jpg"]],
    ],
)
def test_wrong_lists_are_refused_by_name(emoset, rows):
    (emoset / "val.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=r"val\.json|gone\.jpg"):
        load_emoset(emoset)
    (emoset / "val.json").unlink()
    with pytest.raises(DatasetError, match=r"val\.json"):
        load_emoset(emoset)


def write_votes(folder, votes, *extra):
    with (folder / "votes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *EMOTIONS, *(["annotators"] if extra else [])])
        for number, row in enumerate(votes):
            write_photo(folder / "images" / f"{number}.jpg")
            table.writerow([f"images/{number}.jpg", *row, *(extra[number : number + 1])])


def test_multiemo(tmp_path):
    votes = [[20, 0, 5, 10, 0, 0, 0, 1], [0, 19, 0, 0, 0, 0, 12, 7]]
    write_votes(tmp_path, votes)
    dataset = load_multiemo(tmp_path)
    assert (dataset.task, dataset.taxonomy.exclusive, list(dataset.splits)) == ("multilabel", False, ["test"])
    np.testing.assert_allclose(dataset.targets("test"), np.array(votes) / 20, atol=1e-7)
    write_votes(tmp_path, votes, 25, 19)
    np.testing.assert_allclose(load_multiemo(tmp_path).targets("test")[1], np.array(votes[1]) / 19, atol=1e-7)
    splits = load_multiemo(tmp_path, shares={"train": 0.5, "test": 0.5}).splits
    assert sorted(map(len, splits.values())) == [1, 1]


@pytest.mark.parametrize("votes", [[21] + [0] * 7, ["x"] + [0] * 7, [-1] + [0] * 7, [0.5] + [0] * 7, [""] + [0] * 7])
def test_wrong_votes_are_refused_by_row(tmp_path, votes):
    write_votes(tmp_path, [[0] * 8, votes])
    with pytest.raises(DatasetError, match=r"votes\.csv, row 3.*amusement"):
        load_multiemo(tmp_path)
