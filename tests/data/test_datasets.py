import json
import logging
from pathlib import Path

import numpy as np
import pytest
from makers import INTENTS, intentonomy_file, write_json, write_photo

from intclip.data import DATASETS, load_dataset
from intclip.data.emotion import load_abstract, load_artphoto, load_emotion6, load_emotion_roi, load_fi8
from intclip.data.images import read_image
from intclip.data.intentonomy import REPORT, load_intentonomy, load_proxy_intents
from intclip.data.mdid import load_mdid, mdid_features
from intclip.data.memes import load_memes
from intclip.data.mvsa import load_mvsa
from intclip.data.openmoji import all_drawings, load_openmoji
from intclip.data.reading import settle_missing
from intclip.data.sample import Dataset
from intclip.errors import DatasetError, StorageError
from intclip.labels import load_taxonomy


def labels_of(dataset: Dataset, split: str) -> list[list[str]]:
    names = dataset.taxonomy.names
    return [[names[k] for k in np.flatnonzero(row >= dataset.positive_share)] for row in dataset.targets(split)]


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- Intentonomy


@pytest.fixture
def intentonomy(tmp_path: Path) -> Path:
    votes = [[0.0] * 28, [0.0] * 28, [0.0] * 28]
    votes[0][19], votes[0][6], votes[1][27] = 1.0, 1 / 3, 2 / 3
    intentonomy_file(
        tmp_path / "intentonomy_train2020.json", [(f"t{i}", row) for i, row in enumerate(votes)], INTENTS, soft=True
    )
    intentonomy_file(tmp_path / "intentonomy_val2020.json", [("v0", [0]), ("v1", [2, 3])], INTENTS)
    intentonomy_file(tmp_path / "intentonomy_test2020.json", [("s0", [])], INTENTS)
    for index, name in enumerate(("t0", "t1", "t2", "v0", "v1", "s0")):
        write_photo(tmp_path / "low" / f"{name}.jpg", index)
    return tmp_path


def test_intentonomy_votes_ids_and_positives(intentonomy: Path) -> None:
    dataset = load_intentonomy(intentonomy)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert (dataset.name, dataset.task, len(dataset.taxonomy)) == ("intentonomy", "multilabel", 28)
    tx = dataset.taxonomy
    expected = [sorted([tx.index("NatBeauty"), tx.index("EnjoyLife")]), [tx.index("WorkILike")], []]
    assert [np.flatnonzero(row >= 0.3).tolist() for row in dataset.targets("train")] == expected
    np.testing.assert_allclose(dataset.targets("train")[0, [6, 19]], [1 / 3, 1.0], rtol=1e-6)
    assert dataset.targets("val").dtype == np.float32
    assert [np.flatnonzero(row).tolist() for row in dataset.targets("val")] == [[0], [2, 3]]
    assert not dataset.targets("test").any()
    sample = dataset.splits["val"][1]
    assert (sample.id, sample.image, sample.text) == ("v1", intentonomy / "low" / "v1.jpg", None)
    assert load_intentonomy(intentonomy, positive_share=0.6).positive_share == 0.6


def test_intentonomy_category_order_of_the_file_does_not_matter(intentonomy: Path) -> None:
    path = intentonomy / "intentonomy_val2020.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 27 - i, "name": name} for i, name in enumerate(INTENTS)]
    path.write_text(json.dumps(content))
    assert np.flatnonzero(load_intentonomy(intentonomy).targets("val")[0]).tolist() == [27]


def test_intentonomy_other_places_texts_and_partial_labels(intentonomy: Path) -> None:
    (intentonomy / "images").mkdir()
    (intentonomy / "low").rename(intentonomy / "images" / "low")
    (intentonomy / "annotations").mkdir()
    path = intentonomy / "intentonomy_val2020.json"
    content = json.loads(path.read_text())
    content["annotations"][1] = {"image_id": "v1", "category_ids_softprob": [None, -1] + [0.5] * 26}
    del content["annotations"][0]
    path.unlink()
    write_json(intentonomy / "annotations" / "intentonomy_val2020.json", content)
    write_json(intentonomy / "descriptions_val.json", {"v0": "A beach."})
    dataset = load_intentonomy(intentonomy)
    first, second = dataset.splits["val"]
    assert (first.text, second.text) == ("A beach.", None)
    assert np.isnan(first.targets).all()  # a photo without annotation is unknown, not negative
    assert np.isnan(second.targets[:2]).all()
    assert (second.targets[2:] == 0.5).all()
    assert load_intentonomy(intentonomy, text=False).splits["val"][0].text is None
    write_json(intentonomy / "descriptions_val.json", ["A beach."])
    with pytest.raises(DatasetError, match=r"expected an object, found \['A beach"):
        load_intentonomy(intentonomy)


def test_intentonomy_binary_label_matrix(intentonomy: Path) -> None:
    matrix = np.zeros((3, 28))
    matrix[2, 5] = 1
    np.save(intentonomy / "train_label_vectors_intentonomy2020.npy", matrix)
    dataset = load_intentonomy(intentonomy, train_labels="binary")
    np.testing.assert_array_equal(dataset.targets("train"), matrix)
    assert dataset.splits["train"][2].image == intentonomy / "low" / "t2.jpg"
    assert load_intentonomy(intentonomy).targets("train").sum() == pytest.approx(2)  # votes by default
    (intentonomy / "intentonomy_train2020.json").unlink()
    bare = load_intentonomy(intentonomy)
    assert bare.splits["train"][0].image is None
    np.testing.assert_array_equal(bare.targets("train"), matrix)


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [(np.zeros((2, 28)), r"\b2 .*\b3\b"), (np.zeros((3, 27)), "0 and 1"), (np.full((3, 28), 0.5), "0 and 1")],
)
def test_intentonomy_wrong_label_matrix(intentonomy: Path, matrix: np.ndarray, fault: str) -> None:
    np.save(intentonomy / "train_label_vectors_intentonomy2020.npy", matrix)
    with pytest.raises(DatasetError, match=fault) as error:
        load_intentonomy(intentonomy, train_labels="binary")
    one_line(error)


def test_a_pickled_label_matrix_is_refused(intentonomy: Path) -> None:
    np.save(intentonomy / "train_label_vectors_intentonomy2020.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"train_label_vectors_intentonomy2020\.npy"):
        load_intentonomy(intentonomy, train_labels="binary")


def test_intentonomy_missing_photos(intentonomy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (intentonomy / "low" / "t1.jpg").unlink()
    (intentonomy / "low" / "s0.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"2 of 6 photos .*t1\.jpg \(.*train2020\.json, image 2\).*data prepare.*skip"
    ) as error:
        load_intentonomy(intentonomy)
    one_line(error)
    assert len(load_intentonomy(intentonomy, missing="keep").splits["train"]) == 3
    with caplog.at_level(logging.WARNING, logger="intclip.data"):
        dataset = load_intentonomy(intentonomy, missing="skip")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 2, "val": 2, "test": 0}
    assert "2 of 6 photos" in caplog.text
    write_json(intentonomy / REPORT, {"gone": [{"id": "t1"}, {"id": "s0"}]})  # known to be gone: no error
    assert len(load_intentonomy(intentonomy).splits["train"]) == 2


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_intentonomy_malformed_annotations(intentonomy: Path) -> None:
    path = intentonomy / "intentonomy_val2020.json"
    good = json.loads(path.read_text())
    image = {"id": "v0", "filename": "low/v0.jpg"}
    cases: list[tuple[dict[str, object], str]] = [
        (
            {"annotations": [{"image_id": "nobody", "category_ids": [1]}]},
            r"val2020\.json, annotation 1: photo 'nobody' is not among the file's images; 1 annotations",
        ),
        ({"images": [image, {**image, "filename": "low/v1.jpg"}]}, r"image 2: id 'v0' is there already \(.*image 1\)"),
        ({"annotations": [{"image_id": "v0", "category_ids": [28]}]}, "annotation 1: category 28"),
        ({"annotations": [{"image_id": "v0"}]}, "category_ids_softprob"),
        ({"annotations": [{"category_ids": [1]}]}, "'image_id'"),
        ({"annotations": [{"image_id": "v0", "category_ids": [1]}] * 2}, "annotation 2: .*'v0'"),
        ({"annotations": [{"image_id": "v0", "category_ids_softprob": [1]}]}, r"\b1 .*\b28\b"),
        ({"annotations": [{"image_id": "v0", "category_ids_softprob": [3] * 28}]}, "not a share"),
        ({"annotations": ["x"]}, "expected an object"),
        ({"annotations": {}}, "wrong type"),
        ({"categories": [{"id": 0, "name": "Atractive"}]}, "category 1: .*Attractive"),
        ({"categories": [{"id": 0, "name": "Attractive"}, {"id": 0, "name": "BeatCompete"}]}, "same id"),
        ({"images": [{"id": "v0", "filename": "../../etc/passwd"}]}, "file name"),
        ({"images": [{"id": "v0", "filename": "/etc/passwd"}]}, "file name"),
        ({"images": [{"id": "v0", "filename": 3}]}, "wrong type"),
        ({"images": [image]}, "annotation 2: .*v1"),
    ]
    for changes, fault in cases:
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(DatasetError, match=fault) as error:
            load_intentonomy(intentonomy)
        assert str(path) in one_line(error)
    for text, fault in (
        ("{", "row 1: not JSON"),
        ("[]", "expected an object"),
        ("[" * 100_000, "JSON"),
        ("9" * 5000, "JSON"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=fault) as error:
            load_intentonomy(intentonomy)
        one_line(error)


def test_without_annotations_or_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"annotations.*intentonomy_train2020"):
        load_intentonomy(tmp_path)
    monkeypatch.delenv("INTCLIP_DATA", raising=False)
    with pytest.raises(DatasetError, match="INTCLIP_DATA"):
        load_intentonomy()
    monkeypatch.setenv("INTCLIP_DATA", str(tmp_path / "nothing"))
    with pytest.raises(DatasetError, match=r"INTCLIP_DATA.*nothing"):
        load_intentonomy()
    monkeypatch.setenv("INTCLIP_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=str(tmp_path)):
        load_intentonomy()
    write_photo(tmp_path / "mvsa" / "a.jpg")
    (tmp_path / "mvsa" / "train.csv").write_text("image,label,text\na.jpg,positive,hi\n")
    assert len(load_dataset("mvsa").splits["train"]) == 1


def test_proxy_intents(tmp_path: Path) -> None:
    names = list(load_taxonomy("proxy-intents").names)
    row = [0.0] * len(names)
    row[2], row[3] = 0.4, 0.2
    for split, photos, soft in (("train", [("a", row)], True), ("val", [("b", [4])], False)):
        intentonomy_file(tmp_path / f"intents_{split}.json", photos, names, soft=soft)
        write_json(tmp_path / f"captions_{split}.json", {photos[0][0]: ["one", "two"]})
        write_photo(tmp_path / "low" / f"{photos[0][0]}.jpg")
    dataset = load_proxy_intents(tmp_path)
    assert labels_of(dataset, "train") == [[names[2]]]  # two votes of five count, one does not
    assert labels_of(dataset, "val") == [[names[4]]]
    assert dataset.splits["train"][0].text == "one"
    assert load_proxy_intents(tmp_path, captions="all").splits["train"][0].text == "one\ntwo"
    assert load_proxy_intents(tmp_path, captions="none").splits["train"][0].text is None
    with pytest.raises(DatasetError, match="captions"):
        load_proxy_intents(tmp_path, captions="some")


def test_proxy_intents_have_the_labels_that_the_files_name(tmp_path: Path) -> None:
    whole = load_taxonomy("proxy-intents")
    names = [name for name in whole.names if name != "relax"]  # the only one of its group
    for split, photo in (("train", "a"), ("val", "b")):
        intentonomy_file(tmp_path / f"intents_{split}.json", [(photo, [4])], names)
        write_photo(tmp_path / "low" / f"{photo}.jpg")
    dataset = load_proxy_intents(tmp_path)
    dataset.taxonomy.check()
    assert list(dataset.taxonomy.names) == names
    assert "rest" not in dataset.taxonomy.levels["group"]
    assert dataset.taxonomy.sentences()[3] == whole.sentences()[whole.index(names[3])]
    assert labels_of(dataset, "val") == [[names[4]]]
    assert np.isfinite(dataset.targets("train")).all()


# -- emotion sets


def test_emotion_roi(tmp_path: Path) -> None:
    lists = tmp_path / "training_testing_split"
    lists.mkdir()
    (lists / "training.txt").write_text("anger/1.jpg\njoy/2.jpg\n\n")
    (lists / "testing.txt").write_text("surprise\\3.jpg\r\n")
    for name in ("anger/1.jpg", "joy/2.jpg", "surprise/3.jpg"):
        write_photo(tmp_path / "images" / name)
    dataset = load_emotion_roi(tmp_path)
    assert dataset.task == "singlelabel"
    assert labels_of(dataset, "train") == [["anger"], ["joy"]]
    assert labels_of(dataset, "test") == [["surprise"]]
    (lists / "testing.txt").write_text("surprise/3.jpg\nsuprise/4.jpg\n")
    with pytest.raises(DatasetError, match=r"testing\.txt, row 2.*'surprise'"):
        load_emotion_roi(tmp_path)
    (lists / "testing.txt").write_text("surprise/5.jpg\n")
    with pytest.raises(DatasetError, match="1 of 3 photos"):
        load_emotion_roi(tmp_path)
    (lists / "testing.txt").unlink()
    with pytest.raises(DatasetError, match="testing"):
        load_emotion_roi(tmp_path)


def test_fi8(tmp_path: Path) -> None:
    for label in ("awe", "fear"):
        for index in range(20):
            write_photo(tmp_path / "emotion_dataset" / label / f"{index}.jpg", size=(8, 8))
    dataset = load_fi8(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 32, "val": 2, "test": 6}
    assert dataset.taxonomy.name == "mikels8"
    assert {s.id for s in load_fi8(tmp_path, seed=1).splits["test"]} != {s.id for s in dataset.splits["test"]}
    (tmp_path / "train.txt").write_text("awe/0.jpg\n")
    (tmp_path / "test.txt").write_text("fear/1.jpg\nfear/2.jpg\n")
    dataset = load_fi8(tmp_path)
    assert [s.id for s in dataset.splits["test"]] == ["fear/1.jpg", "fear/2.jpg"]
    write_photo(tmp_path / "split" / "train" / "awe" / "1.jpg")
    write_photo(tmp_path / "split" / "test" / "awe" / "1.jpg")
    dataset = load_fi8(tmp_path / "split")
    assert [s.id for samples in dataset.splits.values() for s in samples] == ["train/awe/1.jpg", "test/awe/1.jpg"]


def test_artphoto(tmp_path: Path) -> None:
    for label in ("amusement", "content", "sad"):
        for index in range(5):
            write_photo(tmp_path / "testImages_artphoto" / f"{label}_{index:04d}.jpg", size=(8, 8))
    tested: list[str] = []
    for fold in range(5):
        dataset = load_artphoto(tmp_path, fold=fold)
        tested += [s.id for s in dataset.splits["test"]]
        assert sorted(label for row in labels_of(dataset, "test") for label in row) == [
            "amusement",
            "contentment",
            "sadness",
        ]
    assert len(set(tested)) == 15
    write_photo(tmp_path / "testImages_artphoto" / "boredom_0001.jpg")
    with pytest.raises(DatasetError, match="boredom"):
        load_artphoto(tmp_path)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DatasetError, match="hollow"):
        load_artphoto(tmp_path / "hollow")


def test_abstract(tmp_path: Path) -> None:
    header = "'','Amusement','Anger','Awe','Content','Disgust','Excitement','Fear','Sad'\n"
    rows = ["'a.jpg',5,1,0,0,0,0,0,2", "'b.jpg',3,3,0,0,0,0,0,0", "'c.jpg',0,0,0,0,0,0,0,4", "'d.jpg',0,0,0,9,0,0,0,1"]
    path = tmp_path / "ABSTRACT_groundTruth.csv"
    path.write_text(header + "\n".join(rows) + "\n")
    for name in "abcd":
        write_photo(tmp_path / f"{name}.jpg")
    dataset = load_abstract(tmp_path, folds=3)
    found = {
        s.id: labels
        for split in dataset.splits
        for s, labels in zip(dataset.splits[split], labels_of(dataset, split), strict=True)
    }
    assert found == {"a.jpg": ["amusement"], "c.jpg": ["sadness"], "d.jpg": ["contentment"]}  # b is a tie
    votes = load_abstract(tmp_path, labels="votes", folds=4)
    row = next(s.targets for split in votes.splits.values() for s in split if s.id == "a.jpg")
    assert row[votes.taxonomy.index("amusement")] == pytest.approx(5 / 8)
    assert row.sum() == pytest.approx(1)
    for text, fault in (
        (header + "'a.jpg',5,1\n", "row 2: 3 "),
        (header + "'a.jpg',5,1,0,0,0,0,0,many\n", "row 2: 'many'"),
        (header.replace("Awe", "Ave") + rows[0], "header.*awe"),
        (header.replace("Awe", "Fear") + rows[0], "7 of 8"),
        ("", "0 of 8"),
        (header + "'../a.jpg',5,1,0,0,0,0,0,0\n", "file name"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=fault) as error:
            load_abstract(tmp_path)
        one_line(error)


def test_emotion6(tmp_path: Path) -> None:
    header = "[image_filename]\t[valence]\t[arousal]\t" + "\t".join(f"[prob. {i}]" for i in range(7)) + "\n"
    rows = [
        "disgust/1.jpg\t2.5\t3.8\t0.13\t0.7\t0\t0.07\t0.1\t0\t0",
        "joy/1.jpg\t7\t4\t0\t0\t0\t0.2\t0\t0.2\t0.6",
        "fear/1.jpg\t3\t4\t0\t0\t0.1\t0\t0.3\t0\t0.6",
        "anger/1.jpg\t3\t4\t0\t0\t0\t0\t0\t0\t1",
        "anger/2.jpg\t3\t4\t0.9\t0\t0\t0\t0\t0\t0.1",
    ]
    path = tmp_path / "ground_truth.txt"
    path.write_text(header + "\n".join(rows))
    for row in rows:
        write_photo(tmp_path / "images" / row.split("\t")[0])

    def found(**options: object) -> dict[str, list[float]]:
        dataset = load_emotion6(tmp_path, **options)
        order = [dataset.taxonomy.index(name) for name in ("anger", "disgust", "fear", "joy", "sadness", "surprise")]
        return {s.id: s.targets[order].tolist() for split in dataset.splits.values() for s in split}

    assert found() == {
        "disgust/1.jpg": [0, 1, 0, 0, 0, 0],
        "fear/1.jpg": [0, 0, 0, 0, 1, 0],
        "anger/2.jpg": [1, 0, 0, 0, 0, 0],
    }
    assert found(labels="votes")["fear/1.jpg"] == pytest.approx([0, 0, 0.25, 0, 0.75, 0])
    assert len(found(labels="votes")) == 4  # wholly neutral is left out
    assert found(labels="keyword")["fear/1.jpg"] == [0, 0, 1, 0, 0, 0]
    path.write_text(header + "disgust/1.jpg\t2.5\n")
    with pytest.raises(DatasetError, match="row 2: 2 "):
        load_emotion6(tmp_path)
    path.write_text(header + rows[0].replace("0.7", "7"))
    with pytest.raises(DatasetError, match="'7'"):
        load_emotion6(tmp_path)
    path.write_text(header + rows[0])
    with pytest.raises(DatasetError, match=r"'best'.*dominant, votes"):
        load_emotion6(tmp_path, labels="best")


# -- posts


def post(name: str, intent: str = "provoke") -> dict[str, object]:
    return {"filename": name, "intent": intent, "semiotic": "divergent", "imgTxt": "minimal", "caption": "clean",
            "orig_caption": "Clean! #tag", "likes": {"count": 3}}  # fmt: skip


def test_mdid(tmp_path: Path) -> None:
    verbs = ["provoke", "inform", "advocate", "entertain", "expose", "express", "promote"]
    for fold in range(5):
        write_json(tmp_path / "splits_new" / f"train_split_{fold}.json", [post(f"{v}.jpg", v) for v in verbs])
        write_json(tmp_path / "splits_new" / f"val_split_{fold}.json", [post(f"fold{fold}.jpg")])
    write_photo(tmp_path / "images" / "inform.jpg")
    dataset = load_mdid(tmp_path, fold=3)
    assert (dataset.name, dataset.task, len(dataset.taxonomy)) == ("mdid-intent", "singlelabel", 7)
    assert sorted(np.argmax(dataset.targets("train"), axis=1).tolist()) == list(range(7))
    assert [s.id for s in dataset.splits["test"]] == ["fold3.jpg"]
    assert [s.image is not None for s in dataset.splits["train"]] == [v == "inform" for v in verbs]
    assert dataset.splits["train"][0].text == "clean"
    other = load_dataset("mdid-contextual", tmp_path, caption="orig_caption")
    assert (other.taxonomy.name, other.splits["train"][0].text) == ("mdid-contextual", "Clean! #tag")
    assert load_dataset("mdid-semiotic", tmp_path).taxonomy.name == "mdid-semiotic"
    for v in verbs:
        (tmp_path / "resnet18_feat").mkdir(exist_ok=True)
        np.save(tmp_path / "resnet18_feat" / f"{v}.jpg.npy", np.full((1, 512), len(v), np.float32))
    features = mdid_features(tmp_path, dataset.splits["train"])
    assert features.shape == (7, 512)
    assert features[:, 0].tolist() == [len(v) for v in verbs]
    with pytest.raises(DatasetError, match=r"fold3\.jpg"):
        mdid_features(tmp_path, dataset.splits["test"])
    with pytest.raises(DatasetError, match="fold"):
        load_mdid(tmp_path, fold=5)
    write_json(tmp_path / "splits_new" / "val_split_0.json", [post("a.jpg", "provok")])
    with pytest.raises(DatasetError, match=r"post 1.*provocative"):
        load_mdid(tmp_path)
    write_json(tmp_path / "splits_new" / "val_split_0.json", {})
    with pytest.raises(DatasetError, match=r"val_split_0\.json"):
        load_mdid(tmp_path)


def test_mvsa_and_memes(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "1.jpg")
    for split, label in (("train", "positive"), ("val", "negative")):
        (tmp_path / f"{split}.csv").write_text(f'image,label,text\nimages/1.jpg,{label},"so, ""good"""\n')
    dataset = load_mvsa(tmp_path)
    assert (dataset.task, labels_of(dataset, "val")) == ("singlelabel", [["negative"]])
    assert dataset.splits["train"][0].text == 'so, "good"'
    techniques = load_taxonomy("persuasion").names[:2]
    rows = [
        {"image": "images/1.jpg", "labels": list(techniques), "text": "a"},
        {"image": "images/1.jpg", "labels": [], "text": "b"},
    ]
    (tmp_path / "memes").mkdir()
    for split in ("train", "val"):
        (tmp_path / "memes" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_photo(tmp_path / "memes" / "images" / "1.jpg")
    dataset = load_memes(tmp_path / "memes")
    assert labels_of(dataset, "train") == [list(techniques), []]
    assert not np.isnan(dataset.targets("train")).any()


def test_what_the_messages_of_mvsa_and_memes_advise(tmp_path: Path) -> None:
    """A table with another encoding or column name is read with the option named in the error."""
    label = load_taxonomy("persuasion").names[0]
    for name, file, columns in (("mvsa", "test.csv", "shot,label,text"), ("memes", "test.jsonl", "")):
        write_photo(tmp_path / name / "1.jpg")
        rows = f"{columns}\n1.jpg,positive,schön\n" if columns else json.dumps({"shot": "1.jpg", "labels": [label]})
        (tmp_path / name / file).write_bytes(rows.encode("utf-16"))
        with pytest.raises(DatasetError, match="encoding='utf-16'"):
            load_dataset(name, tmp_path / name)
        (sample,) = load_dataset(name, tmp_path / name, encoding="utf-16", columns={"image": "shot"}).splits["test"]
        assert (sample.image, sample.targets.sum()) == (tmp_path / name / "1.jpg", 1)


# -- OpenMoji


def test_openmoji(tmp_path: Path) -> None:
    dataset = load_openmoji(tmp_path, count=140, size=48)
    sizes = {split: len(samples) for split, samples in dataset.splits.items()}
    assert sum(sizes.values()) == 140
    assert sizes["train"] == pytest.approx(98, abs=3)
    assert dataset.task == "singlelabel"
    assert (np.concatenate([dataset.targets(split) for split in sizes]).sum(axis=1) == 1).all()
    counts = np.concatenate([dataset.targets(split) for split in sizes]).sum(axis=0)
    assert counts.max() - counts[counts > 0].min() <= 2  # evenly from the classes
    image = np.asarray(read_image(dataset.splits["train"][0].image))
    assert image.shape == (48, 48, 3)
    assert (image[0, 0] == 255).all()
    assert image.std() > 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again = load_openmoji(tmp_path, count=140, size=48)
    assert [s.id for s in again.splits["test"]] == [s.id for s in dataset.splits["test"]]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}  # rendered once
    assert len(all_drawings()) > 1800


def test_openmoji_needs_a_writable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        load_openmoji(tmp_path / "file", count=20, size=16)


# -- the registry


def test_every_named_dataset_has_a_taxonomy_and_asks_for_its_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("INTCLIP_DATA", raising=False)
    for name, entry in DATASETS.items():
        if entry.taxonomy is not None:
            assert len(load_taxonomy(entry.taxonomy)) > 1
        if name != "openmoji":
            with pytest.raises(DatasetError, match=f"^{name[:4]}.*root"):
                load_dataset(name)


def test_wrong_names_and_options() -> None:
    for arguments, fault in (
        (("intentonomi",), "did you mean intentonomy"),
        (("none.csv",), r"none\.csv"),
        (("intentonomi", "/tmp"), "did you mean intentonomy"),
        (("/tmp", "/tmp"), "/tmp"),
    ):
        with pytest.raises(DatasetError, match=fault) as error:
            load_dataset(*arguments)
        one_line(error)
    with pytest.raises(DatasetError, match="did you mean positive_share"):
        load_dataset("intentonomy", "/tmp", positiv_share=0.5)
    with pytest.raises(DatasetError, match="missing='drop'"):
        settle_missing({}, "drop", "x", "y")


def test_mdid_as_tables_of_captions(tmp_path: Path) -> None:
    rows = (
        "text,intent,semiotic,contextual\nBuy now,promotive,parallel,close\nLook at me,expositive,divergent,minimal\n"
    )
    (tmp_path / "train.csv").write_text(rows)
    for labels, expected in (("intent", "promotive"), ("semiotic", "parallel"), ("contextual", "close")):
        dataset = load_dataset(f"mdid-{labels}", tmp_path)
        (first, _) = dataset.splits["train"]
        assert (first.text, first.image) == ("Buy now", None)
        assert dataset.taxonomy.names[int(first.targets.argmax())] == expected
    with pytest.raises(DatasetError, match="fold=1"):
        load_dataset("mdid-intent", tmp_path, fold=1)


def test_metmeme(tmp_path: Path) -> None:
    rows = "text,description,intent\nHI,A cat.,interactive\n,A dog.,offensive\n,,other\n"
    (tmp_path / "train.csv").write_text(rows)
    both = load_dataset("metmeme", tmp_path)
    assert [sample.text for sample in both.splits["train"]] == ["HI\nA cat.", "A dog."]
    assert both.task == "singlelabel"
    assert [sample.text for sample in load_dataset("metmeme", tmp_path, words="text").splits["train"]] == ["HI"]
    with pytest.raises(DatasetError, match="words='all'"):
        load_dataset("metmeme", tmp_path, words="all")
