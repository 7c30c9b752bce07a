"""Sources of a batch job: photos in tables, lists on standard input, and skipped files."""

import io
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from intclip.batch.references import references
from intclip.data.images import read_image
from intclip.data.sample import EmbeddedPhoto
from intclip.data.unlabelled import read_posts
from intclip.errors import ImageError


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("plain", [False, True])
def test_photos_inside_a_parquet_file(tmp_path, plain):
    colours = ["red", "lime", "blue"]
    cells = [png(name) if plain else {"bytes": png(name), "path": f"{name}.png"} for name in colours]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", row_group_size=2)
    found = list(references([str(tmp_path / "t.parquet")]))
    names = ["row 1", "row 2", "row 3"] if plain else ["red.png", "lime.png", "blue.png"]
    assert [reference.path for reference in found] == [f"{tmp_path}/t.parquet!{name}" for name in names]
    photos = [reference.image() for reference in found]
    assert all(isinstance(photo, EmbeddedPhoto) for photo in photos)
    pixels = [read_image(photo).getpixel((0, 0)) for photo in photos]
    assert pixels == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_cell_without_a_photo_is_an_error_of_that_photo(tmp_path):
    cells = [{"bytes": png("red"), "path": "a.png"}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    first, second = (reference.image() for reference in references([str(tmp_path / "t.parquet")]))
    assert read_image(first).size == (8, 8)
    with pytest.raises(ImageError, match=r"t\.parquet!gone\.png"):
        read_image(second)
    pq.write_table(pa.table({"image": [cells[0]]}), tmp_path / "t.parquet")
    with pytest.raises(ImageError, match=r"t\.parquet!gone\.png"):
        read_image(second)


def test_a_list_on_standard_input(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png("red"))
    names = f"{tmp_path}/gone.png\n{tmp_path}/a.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    assert [reference.path for reference in references(["-"])] == names.split()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png("red"))))
    with pytest.raises(ImageError, match="predict -"):
        list(references(["-"]))


@pytest.mark.parametrize(
    "read", [lambda path: [r.path for r in references([path])], lambda path: read_posts([path])[0]]
)
@pytest.mark.parametrize("name", ["t.csv", "list.txt"])
def test_paths_with_backslashes_are_found(tmp_path, monkeypatch, read, name):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.png").write_bytes(png("red"))
    header = ["image"] if name == "t.csv" else []
    (tmp_path / "in" / name).write_text("\n".join([*header, r"sub\a.png", r"sub\gone.png"]))
    monkeypatch.chdir(tmp_path)
    for base in ("in", str(tmp_path / "in")):
        found = [str(photo) for photo in read(f"{base}/{name}")]
        assert found == [f"{base}/sub/a.png", rf"{base}/sub\gone.png"]


def test_what_is_left_out_of_archives_and_addresses(tmp_path):
    import fsspec

    names = ("a.png", "drafts/b.png", "@eaDir/c.png", ".hidden/d.png", "trip/e.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(png("red"))
            archive.addfile(info, io.BytesIO(png("red")))
    found = [reference.path for reference in references([str(tmp_path / "x.tar")], exclude=["drafts"])]
    assert found == [f"{tmp_path}/x.tar!{name}" for name in ("a.png", "trip/e.png")]
    store = fsspec.filesystem("memory")
    for name in names:
        store.pipe_file(f"/left-out/{name}", png("red"))
    found = [reference.path for reference in references(["memory://left-out/"], exclude=["drafts"])]
    assert [path.rpartition("left-out/")[2] for path in found] == ["a.png", "trip/e.png"]
