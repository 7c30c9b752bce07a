"""Which files of a folder are photos, and messages about the others."""

import logging
from pathlib import Path

import pytest

from intclip.data.find import find_images, list_paths, photo_beside, photos_in
from intclip.errors import ImageError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root: Path, **options) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(root, **options)]


def test_linked_folders_are_followed_once(tmp_path):
    root, outside = fill(tmp_path / "in", "z/a.jpg", "b.jpg"), fill(tmp_path / "out", "c.jpg", "deep/d.jpg")
    (root / "linked").symlink_to(outside)
    (root / "again").symlink_to(outside)
    (root / "a-link-inside").symlink_to(root / "z")
    (outside / "deep" / "up").symlink_to(root)
    (root / "loop").symlink_to(root)
    assert found(root) == ["again/c.jpg", "again/deep/d.jpg", "b.jpg", "z/a.jpg"]


def test_a_link_to_a_file_counts_as_a_photo(tmp_path):
    root = fill(tmp_path / "in", "a.jpg")
    (root / "b.jpg").symlink_to(root / "a.jpg")
    (root / "gone.jpg").symlink_to(root / "nothing")
    assert found(root) == ["a.jpg", "b.jpg", "gone.jpg"]


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "$RECYCLE.BIN", ".thumbnails", "__MACOSX", "System Volume Information", "@Recycle", "@__thumb"],
)
def test_what_systems_put_there_is_no_photo(tmp_path, folder):
    root = fill(tmp_path, "a.jpg", f"{folder}/a.jpg", f"trip/{folder}/b.jpg", "trip/b.jpg")
    assert found(root) == ["a.jpg", "trip/b.jpg"]
    assert [path.name for path in find_images(f"{root}/**/*.jpg")] == ["a.jpg", "b.jpg"]
    assert [path.name for path in find_images(root / folder / "a.jpg")] == ["a.jpg"], "given directly"


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["*_small.jpg"], ["a.jpg", "trip/b.jpg", "trip/drafts/c.jpg"]),
        (["drafts"], ["a.jpg", "a_small.jpg", "trip/b.jpg"]),
        (["drafts/"], ["a.jpg", "a_small.jpg", "trip/b.jpg"]),
        (["trip/drafts/*"], ["a.jpg", "a_small.jpg", "trip/b.jpg"]),
        (["trip"], ["a.jpg", "a_small.jpg"]),
        (["trip/b.jpg", "*_small*"], ["a.jpg", "trip/drafts/c.jpg"]),
    ],
)
def test_exclude(tmp_path, exclude, left):
    root = fill(tmp_path, "a.jpg", "a_small.jpg", "trip/b.jpg", "trip/drafts/c.jpg")
    assert found(root, exclude=exclude) == left
    pattern = find_images(f"{root}/**/*.jpg", exclude=exclude)
    assert [path.relative_to(root).as_posix() for path in pattern] == left


def test_what_was_left_out_is_counted_by_kind(tmp_path, caplog):
    root = fill(tmp_path, "a.jpg", "b.mp4", "c.MP4", "d.xmp", "readme", "sub/e.cr2x")
    with caplog.at_level(logging.INFO, "intclip.data"):
        assert photos_in(root) == [root / "a.jpg"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{root}: ")
    for part in ("4 files", "2 .mp4", "1 .cr2x", "1 without"):
        assert part in line


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "intclip.data"):
        photos_in(fill(tmp_path, "a.jpg", "b.jxl", "c.hif", "d.avif", "a.jpg.xmp", "b.XMP"))
    assert not caplog.records


def test_a_list_may_name_photos_that_are_gone(tmp_path):
    fill(tmp_path, "a.jpg")
    listing = tmp_path / "list.txt"
    listing.write_text("gone.jpg\na.jpg\n")
    assert find_images(listing, keep_missing=True) == [tmp_path / "gone.jpg", tmp_path / "a.jpg"]
    with pytest.raises(ImageError, match=r"list\.txt, line 1.*gone\.jpg"):
        find_images(listing)
    listing.write_text("gone.jpg\nlost.jpg\n")
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        find_images(listing, keep_missing=True)
    with pytest.raises(ImageError, match="a list"):
        list_paths("\n", "a list", tmp_path)


def test_addresses_are_told_from_paths():
    with pytest.raises(ImageError, match=r"https://x\.org/a\.jpg.*batch"):
        find_images("https://x.org/a.jpg")


def test_any_text_may_stand_where_a_photo_is_named(tmp_path):
    """A name too long for the file system is a missing photo."""
    for name in ("\\frac{a}{b} " * 200, "a\\b\0c"):
        assert photo_beside(tmp_path, name) == tmp_path / name
