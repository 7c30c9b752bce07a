"""Masks from pictures and from run lengths."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intclip.data.masks import Masks, run_lengths
from intclip.errors import DatasetError


def test_run_lengths_go_down_the_columns() -> None:
    expected = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(run_lengths([1, 3, 2], (2, 3)), expected)


def test_the_published_file_gives_the_union_of_sure_objects(tmp_path: Path) -> None:
    masks = [{"size": [2, 3], "counts": counts} for counts in ([1, 1, 4], [5, 1], [0, 6])]
    file = tmp_path / "coco_maskrcnn.json"
    file.write_text(json.dumps({"low/a.jpg": {"scores": [0.9, 0.7, 0.6], "masks": masks, "image_shape": [2, 3, 3]}}))
    read = Masks(file)
    np.testing.assert_array_equal(np.asarray(read("a")), [[0, 0, 0], [255, 0, 255]])
    assert read("b") is None


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (255, 255, 255)).save(tmp_path / "a.png")
    read = Masks(tmp_path)
    assert np.asarray(read("a")).tolist() == [[255] * 4] * 3
    assert read("b") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected one entry per photo"),
        ("{", "not JSON"),
        ('{"low/a.jpg": {"scores": [1], "image_shape": [2, 3]}}', "photo a: "),
        (
            '{"low/a.jpg": {"scores": [1], "image_shape": [2, 3], "masks": [{"size": [2, 3], "counts": "ab"}]}}',
            "compressed",
        ),
    ],
)
def test_what_is_no_mask_is_told(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "masks.json"
    file.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        Masks(file)("a")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path / "gone")):
        Masks(tmp_path / "gone")
