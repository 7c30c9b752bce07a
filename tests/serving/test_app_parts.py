"""What the app writes and reads without a browser: corrections as a table, lines as labels."""

import pytest

from intclip.data.tabular import load_table
from intclip.errors import TaxonomyError
from intclip.labels.reading import parse_taxonomy
from intclip.serving.app.own_intents import MOST, read_intents
from intclip.serving.app.session import Photo, corrections_table

NAMES = ("joy", "sun; sand", "[rest]", 'a "quoted", name')


@pytest.mark.parametrize(
    "held", [[], ["joy"], ["joy", 'a "quoted", name'], ["sun; sand"], ["[rest]", "joy"], ["joy", "[rest]"], list(NAMES)]
)
def test_corrections_come_back_as_they_were_kept(tmp_path, held):
    photos = [Photo(tmp_path / "x", name, "") for name in ("left.png", "trip/a, b.png")]
    for photo in photos:
        (tmp_path / photo.name).parent.mkdir(exist_ok=True)
        (tmp_path / photo.name).write_bytes(b"x")
    (tmp_path / "corrections.csv").write_text(corrections_table(photos, {1: held}, {1: 'says "hi",\nand more'}))
    dataset = load_table(tmp_path / "corrections.csv", taxonomy=parse_taxonomy(list(NAMES), "test"))
    (sample,) = dataset.splits["train"]
    assert sample.image == tmp_path / "trip/a, b.png"
    assert sample.text == 'says "hi",\nand more'
    assert [name for name, share in zip(NAMES, sample.targets, strict=True) if share == 1] == [
        name for name in NAMES if name in held
    ]
    assert set(sample.targets) <= {0, 1}  # nothing is unknown


def test_own_intents_are_lines():
    assert read_intents(" \n\n") is None
    labels = read_intents("  A quiet   morning\n\na QUIET morning\nyes: no\n- 3\n")
    assert labels is not None
    assert labels.names == ("A quiet morning", "yes: no", "- 3")
    with pytest.raises(TaxonomyError, match="at most"):
        read_intents("\n".join(f"label {i}" for i in range(MOST + 1)))
