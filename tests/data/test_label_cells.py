"""Several labels in one cell, separated by semicolons, or by commas if the cells imply it."""

import pytest

from intclip.data import load_dataset
from intclip.errors import DatasetError


def names(tmp_path, header, cells, **options):
    rows = "\n".join(f'{i}.jpg-words,"{cell}"' for i, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(f"text,{header}\n{rows}\n")
    dataset = load_dataset(tmp_path / "t.csv", **options)
    return list(dataset.taxonomy.names), dataset.targets("train").sum(axis=1).tolist()


def test_commas_separate_labels_that_recombine_and_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="intclip")
    found = names(tmp_path, "labels", ["joy, play", "play", "joy", "play,rest", "rest"])
    assert found == (["joy", "play", "rest"], [2, 1, 1, 2, 1])
    assert "separator=;" in " ".join(caplog.messages)
    assert "t.csv" in " ".join(caplog.messages)


def test_commas_inside_names_stay(tmp_path):
    cells = ["Bakery, cafe", "Bar, pub", "Bakery, cafe", "Bar, pub"]
    assert names(tmp_path, "label", cells) == (["Bakery, cafe", "Bar, pub"], [1, 1, 1, 1])
    assert names(tmp_path, "labels", cells)[0] == ["Bakery, cafe", "Bar, pub"]


def test_semicolons_go_before_commas(tmp_path):
    assert names(tmp_path, "labels", ["a, b; c", "c", "a, b"])[0] == ["a, b", "c"]


def test_the_separator_can_be_given(tmp_path):
    cells = ["joy, play", "play", "joy", "rest"]
    assert names(tmp_path, "labels", cells, separator=";")[0] == ["joy", "joy, play", "play", "rest"]
    assert names(tmp_path, "labels", ["a|b", "b"], separator="|")[0] == ["a", "b"]
    with pytest.raises(DatasetError, match="separator='/'"):
        names(tmp_path, "labels", cells, separator="/")


def test_a_taxonomy_decides(tmp_path):
    (tmp_path / "two.yaml").write_text("name: two\nclasses:\n  - name: Food, drink\n  - name: joy\n  - name: play\n")
    taxonomy = str(tmp_path / "two.yaml")
    found = names(tmp_path, "labels", ["Food, drink", "joy", "Food, drink"], taxonomy=taxonomy)
    assert found[1] == [1, 1, 1]
    assert names(tmp_path, "labels", ["joy, play", "joy"], taxonomy=taxonomy)[1] == [2, 1]


def test_bars_separate_labels_that_recombine(tmp_path):
    """Regression: "joy|play" was one label."""
    assert names(tmp_path, "labels", ["joy|play", "play", "joy", "play | rest"])[0] == ["joy", "play", "rest"]
    assert names(tmp_path, "label", ["in|out", "up|down", "in|out"])[0] == ["in|out", "up|down"]


@pytest.mark.parametrize("header", ["label", "labels"])
def test_whole_numbers_of_spreadsheets_are_one_label(tmp_path, header):
    """pandas writes a column of whole numbers with an empty cell as 1.0."""
    assert names(tmp_path, header, ["1", "1.0", "0.0", "0"]) == (["0", "1"], [1, 1, 1, 1])
    assert names(tmp_path, header, ["1.0", "1.5", "v1.0"])[0] == ["1.0", "1.5", "v1.0"]


@pytest.mark.parametrize("word", ["nan", "None", "N/A"])
def test_a_label_that_is_probably_no_value_is_named(tmp_path, caplog, word):
    assert names(tmp_path, "label", ["joy", word, "rest"])[0] == sorted(["joy", word, "rest"])
    assert repr(word) in " ".join(caplog.messages)
    caplog.clear()
    names(tmp_path, "label", ["joy", "rest"])
    assert not caplog.messages
