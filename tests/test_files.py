import hashlib
from pathlib import Path

import pytest

from intclip.errors import MissingExtraError, StorageError
from intclip.extras import require
from intclip.files import (
    CACHE_VARIABLE,
    atomic_directory,
    atomic_path,
    cache_home,
    make_directory,
    sha256_file,
    write_text,
)


def test_atomic_path_appears_whole(tmp_path: Path):
    target = tmp_path / "deep" / "a.txt"
    with atomic_path(target) as partial:
        partial.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path: Path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_with_two_names_keeps_the_old_content_under_the_other(tmp_path: Path):
    """As required for backups by hard links; a symbolic link, in contrast, is followed."""
    write_text(tmp_path / "a", "old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    write_text(tmp_path / "a", "new")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


def test_a_cache_folder_that_is_a_file_is_named_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match=f"{CACHE_VARIABLE}.*file"):
        cache_home()


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(StorageError, match=r"/a: .*No space left"), atomic_path(tmp_path / "a"):
        Path("/dev/full").write_bytes(b"x" * 10)
    assert not list(tmp_path.iterdir())


def test_atomic_directory_replaces_only_when_asked(tmp_path: Path):
    target = tmp_path / "bundle"
    with atomic_directory(target) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(StorageError, match=str(target)), atomic_directory(target):
        pass
    with atomic_directory(target, overwrite=True) as partial:
        (partial / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert len(list(tmp_path.iterdir())) == 1


def test_of_two_that_write_a_directory_at_once_the_first_stays(tmp_path: Path):
    """Regression: the second replaced the first's result, which neither was asked to do."""
    target = tmp_path / "run"
    with pytest.raises(StorageError, match=str(target)), atomic_directory(target) as late:
        (late / "figure").write_text("late")
        with atomic_directory(target) as early:
            (early / "figure").write_text("early")
    assert (target / "figure").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_atomic_directory_keeps_the_old_one_when_writing_fails(tmp_path: Path):
    target = tmp_path / "bundle"
    with atomic_directory(target) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True) as partial:
        (partial / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_folders_made_for_what_failed_go_again(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    for there in (tmp_path, tmp_path / "kept"):
        for writer in (atomic_path, atomic_directory):
            with pytest.raises(RuntimeError), writer(there / "deep" / "deeper" / "a"):
                raise RuntimeError
            with pytest.raises(RuntimeError), writer(there / "a"):
                raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "shared" / "deep" / "a"):
        write_text(tmp_path / "shared" / "b", "of another")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["b"]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path):
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    write_text(tmp_path / "file", "")
    with pytest.raises(StorageError, match=r"/file: File exists"):
        make_directory(tmp_path / "file")
    with pytest.raises(StorageError, match=r"/deep: Not a directory"):
        make_directory(tmp_path / "file" / "deep")


def test_sha256_file(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_missing_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"no_such_library.*intclip\[ray\]"):
        require("no_such_library.part", "ray")
