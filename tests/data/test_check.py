import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from makers import INTENTS, encode, intentonomy_file, tar, write_photo
from PIL import Image
from server import photo_server

from intclip.cli.main import app
from intclip.data import load_dataset
from intclip.data.check import NEAR_BITS, check_dataset, near_pairs, perceptual_hash
from intclip.data.check_plots import draw
from intclip.data.sample import Dataset, Sample, TarMember
from intclip.errors import IntclipError
from intclip.labels import load_taxonomy

REAL = [Image.fromarray(array[..., :3]) for array in (
    skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket(),
    sklearn.datasets.load_sample_image("china.jpg"), sklearn.datasets.load_sample_image("flower.jpg"),
)]  # fmt: skip


def bits_apart(a: Image.Image, b: Image.Image) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(perceptual_hash(a), perceptual_hash(b), strict=True))


def test_perceptual_hash_survives_size_quality_and_kind_and_tells_photos_apart() -> None:
    for image in REAL:
        for other in (
            image.resize((image.width // 2, image.height // 2)),
            Image.open(io.BytesIO(encode(image, quality=40))),
            image.convert("L"),
            image.point(lambda value: int(value * 0.9)),
        ):
            assert bits_apart(image, other) <= NEAR_BITS
    apart = [bits_apart(a, b) for i, a in enumerate(REAL) for b in REAL[:i]]
    assert min(apart) > 3 * NEAR_BITS


def test_perceptual_hash_equals_a_slow_reference() -> None:
    image = REAL[0]
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX)).tolist()
    right = "".join("1" if grey[y][x + 1] > grey[y][x] else "0" for y in range(8) for x in range(8))
    down = "".join("1" if grey[y + 1][x] > grey[y][x] else "0" for y in range(8) for x in range(8))
    assert perceptual_hash(image) == (int(right, 2), int(down, 2))


def test_near_pairs_equal_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (600, 2), dtype=np.uint64)
    hashes[590:] = hashes[:10] ^ np.uint64(0b1011)
    hashes[10] = hashes[11]
    expected = {
        (i, j)
        for i in range(600)
        for j in range(i + 1, 600)
        if sum(int(a ^ b).bit_count() for a, b in zip(hashes[i], hashes[j], strict=True)) <= 6
    }
    assert set(near_pairs(hashes, 6)) == expected
    assert len(expected) == 11


@pytest.fixture
def flawed(tmp_path: Path) -> Dataset:
    """Photos with every flaw."""
    taxonomy = load_taxonomy("ekman6")
    for index in range(5):
        REAL[index].save(tmp_path / f"real{index}.png")
    REAL[0].resize((200, 200)).save(tmp_path / "smaller.jpg", quality=60)  # leaks: looks like real0
    (tmp_path / "copy.png").write_bytes((tmp_path / "real1.png").read_bytes())
    REAL[2].save(tmp_path / "again.jpg", quality=80)
    (tmp_path / "cut.png").write_bytes((tmp_path / "real3.png").read_bytes()[:5000])
    (tmp_path / "empty.jpg").touch()
    for colour in ("white", "black"):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{colour}.png")

    def sample(name: str, *labels: int, unknown: bool = False) -> Sample:
        targets = np.zeros(6, dtype=np.float32)
        targets[list(labels)] = 1
        return Sample(name, np.full(6, np.nan, np.float32) if unknown else targets, tmp_path / name)

    train = [
        *(sample("real0.png", 0), sample("real1.png", 0, 1), sample("copy.png", 1), sample("real2.png", 2)),
        *(sample("again.jpg", 2), sample("cut.png", 3), sample("white.png", 0), sample("real3.png", unknown=True)),
    ]
    test = [
        *(sample("smaller.jpg", 0), sample("gone.jpg", 5), sample("empty.jpg", 5)),
        *(sample("black.png", 4), sample("real4.png", 4)),
    ]
    words = Sample("words", np.eye(6, dtype=np.float32)[0], None, "only words")
    return Dataset("flawed", taxonomy, "multilabel", {"train": train, "test": [*test, words], "val": []})


def test_every_flaw_is_found(flawed: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    check = check_dataset(flawed, workers=2, on_progress=lambda done, total: seen.append((done, total)))
    assert [(p.split, p.id) for p in check.missing] == [("test", "gone.jpg")]
    assert [(p.split, p.id) for p in check.corrupt] == [("train", "cut.png"), ("test", "empty.jpg")]
    assert "truncated" in check.corrupt[0].reason
    assert "0 bytes" in check.corrupt[1].reason
    assert check.duplicates == [[("train", "real1.png"), ("train", "copy.png")]]
    assert check.near_duplicates == [[("train", "real2.png"), ("train", "again.jpg")]]
    assert check.leaks == [[("train", "real0.png"), ("test", "smaller.jpg")]]
    assert not check.sound
    assert seen == [(i, 13) for i in range(1, 14)]
    assert check.splits == {
        "train": {"samples": 8, "photos": 8, "labelled": 7},
        "test": {"samples": 6, "photos": 5, "labelled": 6},
        "val": {"samples": 0, "photos": 0, "labelled": 0},
    }


def test_label_statistics_equal_a_slow_reference(flawed: Dataset) -> None:
    check = check_dataset(flawed, photos=False)
    assert check.positives == {"train": [3, 2, 2, 1, 0, 0], "test": [2, 0, 0, 0, 2, 2]}
    assert check.unknown == {"train": [1] * 6, "test": [0] * 6}
    assert check.labels_per_sample["train"] == pytest.approx(8 / 7)
    assert check.cooccurrence.diagonal().tolist() == [5, 2, 2, 1, 2, 2]
    assert check.cooccurrence[0, 1] == check.cooccurrence[1, 0] == 1
    rows = {row["label"]: row for row in check.shift["train – test"]}
    row = rows[flawed.taxonomy.names[2]]
    p = 2 / 13
    assert (row["first"], row["second"]) == (pytest.approx(2 / 7), 0)
    assert row["z"] == pytest.approx((0 - 2 / 7) / np.sqrt(p * (1 - p) * (1 / 7 + 1 / 6)))
    assert [abs(r["z"]) for r in check.shift["train – test"]] == sorted(
        (abs(r["z"]) for r in rows.values()), reverse=True
    )


def test_the_same_bytes_in_two_splits_leak(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png")
    content = path.read_bytes()
    (tmp_path / "x.tar").write_bytes(b"#" * 32 + content)
    one = np.array([1, 0, 0, 0, 0, 0], np.float32)
    member = TarMember(tmp_path / "x.tar", "a.png", 32, len(content))
    dataset = Dataset(
        "x", load_taxonomy("ekman6"), "singlelabel", {"a": [Sample("1", one, path)], "b": [Sample("2", one, member)]}
    )
    check = check_dataset(dataset)
    assert check.leaks == [[("a", "1"), ("b", "2")]]
    assert check.duplicates == []
    gone = Dataset(
        "x", dataset.taxonomy, "singlelabel", {"a": [Sample("1", one, TarMember(tmp_path / "y.tar", "a", 0, 9))]}
    )
    assert [p.id for p in check_dataset(gone).missing] == ["1"]


def test_a_sound_dataset(tmp_path: Path) -> None:
    for index, name in enumerate(("train/sea/a.png", "train/sun/b.png", "val/sea/c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        REAL[index].resize((90, 60)).save(tmp_path / name)
    assert check_dataset(load_dataset(tmp_path)).sound


def test_drawings_and_json(flawed: Dataset, tmp_path: Path) -> None:
    check = check_dataset(flawed)
    paths = draw(check, tmp_path / "plots")
    assert [path.name for path in paths] == ["class_counts.png", "cooccurrence.png", "shift_train_test.png"]
    for path in paths:
        assert np.asarray(Image.open(path).convert("L")).std() > 10
    content = json.loads(json.dumps(check.to_dict()))
    assert content["missing"][0]["id"] == "gone.jpg"
    assert content["sound"] is False


# -- the command line


def command(*arguments: str) -> int:
    """Run in this process; errors that main() converts to exit code 2 are raised."""
    code = app(list(arguments), standalone_mode=False)
    return code if isinstance(code, int) else 0


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for index in range(4):
        write_photo(tmp_path / f"{index}.jpg", index, (60, 50))
    (tmp_path / "3.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    rows = [
        "image,labels,split",
        "0.jpg,sea;sun,train",
        "1.jpg,sun,train",
        "2.jpg,sea,val",
        "3.jpg,sea,val",
        "9.jpg,sea,val",
    ]
    (tmp_path / "my.csv").write_text("\n".join(rows))
    return tmp_path / "my.csv"


def test_list_and_show(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("data", "list")
    assert "intentonomy" in capsys.readouterr().out
    command("data", "list", "--json")
    assert {"name", "summary", "taxonomy", "terms"} == set(json.loads(capsys.readouterr().out)[0])
    command("data", "show", str(table))
    out = capsys.readouterr().out
    assert "my: multilabel, 2 labels (my)" in out
    assert "train: 0.jpg" in out
    told = f"missing photos: 1 of 5, the first is {table.parent / '9.jpg'} ({table}, row 6); "
    assert out.splitlines()[-1].startswith(told)
    command("data", "show", str(table), "--json", "--set", "positive_share=0.3", "--set", "seed=3")
    content = json.loads(capsys.readouterr().out)
    assert content["positives"] == {"train": [1, 2], "val": [3, 0]}
    assert content["positive_share"] == 0.3
    assert content["missing"] == 1
    assert content["samples"]["train"][0]["labels"] == ["sea", "sun"]


def test_photos_in_a_tar_are_told_by_archive_and_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "x.tar", {"1.jpg": encode(REAL[0]), "1.cls": "sea", "2.jpg": b"none", "2.cls": "sun"})
    command("data", "show", str(path))
    assert f"train: 1  {path}!1.jpg  sea" in capsys.readouterr().out
    command("data", "show", str(path), "--json")
    assert json.loads(capsys.readouterr().out)["samples"]["train"][0]["image"] == f"{path}!1.jpg"
    command("data", "check", str(path))
    assert f"train: {path}!2.jpg is not a supported image" in capsys.readouterr().out


def test_check_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("data", "check", str(table), "--plots", str(tmp_path / "plots"))
    out = capsys.readouterr().out
    assert "missing photos: 1" in out
    assert "groups of photos leaking between splits: 1" in out
    assert "train: 0.jpg  =  val: 3.jpg" in out
    assert "my: problems found" in out
    assert (tmp_path / "plots" / "class_counts.png").is_file()
    command("data", "check", str(table), "--json")
    content = json.loads(capsys.readouterr().out)
    assert content["leaks"] == [[["train", "0.jpg"], ["val", "3.jpg"]]]
    command("data", "check", str(table), "--no-photos")
    assert "photos were not read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["data", "show", "no-such.csv"], "'no-such.csv'"),
        (["data", "check", "intentonomy", "--data-root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["data", "prepare", "mvsa", "--data-root", "x"], "mvsa"),
        (["data", "show", "mvsa", "--set", "missing"], "key=value"),
        (["data", "show", "mvsa", "--set", "root=elsewhere"], "--data-root"),
        (["data", "show", "mvsa", "--set", "mising=skip"], "did you mean missing"),
        (["data", "show", "table", "--data-root", "x.csv", "--set", "encoding=3"], "encoding=3: .*string"),
        (["data", "show", "table", "--data-root", "x.csv", "--set", "shares=abc"], "shares='abc': .*dictionary"),
        (["data", "show", "table", "--data-root", "x.csv", "--set", "task=multi"], "task='multi': .*'singlelabel'"),
        (["data", "show", "table", "--data-root", "x.csv", "--set", "positive_share=half"], "positive_share='half'"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], fault: str) -> None:
    with pytest.raises(IntclipError, match=fault) as error:
        command(*arguments)
    assert "\n" not in str(error.value)


def test_prepare_command_end_to_end(tmp_path: Path) -> None:
    """With the local server, from the command line, in its own process; then check and show."""
    with photo_server() as server:
        names = [("good-1", [1]), ("good-2", [2]), ("gone-1", [3])]
        intentonomy_file(tmp_path / "intentonomy_val2020.json", names, INTENTS, url=server.url)
        arguments = [
            "data",
            "prepare",
            "intentonomy",
            "--data-root",
            str(tmp_path),
            "--split",
            "val",
            "--width",
            "64",
            "--json",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "intclip.cli", *arguments], capture_output=True, text=True, check=True
        )
    report = json.loads(done.stdout)
    assert (report["fetched"], len(report["gone"]), done.stderr) == (2, 1, "")
    assert check_dataset(load_dataset("intentonomy", tmp_path)).sound
