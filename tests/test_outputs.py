"""Targets that are links, pipes, devices or standard output."""

import io
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from intclip.errors import StorageError
from intclip.files import atomic_directory, atomic_path, atomic_text, check_target, is_stdout, is_stream, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names of POSIX")


def test_links_are_followed(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link").symlink_to("real.txt")
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "dangling").symlink_to("new/there.txt")
    write_text(tmp_path / "chain", "new")
    write_text(tmp_path / "dangling", "made")
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "new/there.txt").read_text() == "made"
    assert all((tmp_path / name).is_symlink() for name in ("link", "chain", "dangling"))


def test_links_in_a_circle_and_folders_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "folder").mkdir()
    for name in ("a", "folder"):
        with pytest.raises(StorageError, match=name):
            write_text(tmp_path / name, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "folder"]


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link", overwrite=True) as partial:
        (partial / "x").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "x"


def test_a_files_permissions_stay(tmp_path):
    (tmp_path / "x").write_text("secret")
    (tmp_path / "x").chmod(0o600)
    write_text(tmp_path / "x", "new")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    (tmp_path / "x").chmod(0o400)
    with pytest.raises(StorageError, match="x: Permission denied"):
        write_text(tmp_path / "x", "new")


def test_outputs_are_checked_without_writing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for target in ("file", "new", "new/deep/x", "/dev/null", "-"):
        check_target(tmp_path / target if target[0] not in "/-" else target)
    for target in ("folder", "new", "new/deep"):
        check_target(tmp_path / target, folder=True)
    for target in ("folder", "file/x", "file/x/y", "a", "n" * 300):
        with pytest.raises(StorageError, match=f"cannot write .*{target}"):
            check_target(tmp_path / target)
    for target in ("file", "file/x", "/dev/null", "a"):
        with pytest.raises(StorageError, match=target):
            check_target(tmp_path / target, folder=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(StorageError, match="new/x: Permission denied"):
        check_target(tmp_path / "new" / "x")
    check_target(tmp_path / "folder", folder=True)
    with pytest.raises(StorageError, match="folder: Permission denied"):  # replacing it changes its parent
        check_target(tmp_path / "folder", folder=True, replace=True)
    monkeypatch.undo()
    check_target(tmp_path / "folder", folder=True, replace=True)
    with pytest.raises(StorageError, match="/proc"):
        check_target("/proc", folder=True, replace=True)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "a", "b"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("write", [write_text, lambda target, text: list(_rows(target, text))])
def test_a_pipe_stays_a_pipe(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write(tmp_path / "pipe", "one\ntwo\n")
    reader.join(5)
    assert got == ["one\ntwo\n"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def _rows(target: Path, text: str):
    with atomic_text(target) as file:
        for line in text.splitlines(keepends=True):
            yield file.write(line)


def test_devices_are_written_to():
    write_text("/dev/null", "x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert is_stream("/dev/null")


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(target, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print("before")
    write_text(target, "ü\n")
    with atomic_text(target) as file:
        file.write("é")
    print("after")
    sys.stdout.flush()
    assert raw.getvalue() == "before\nü\néafter\n".encode()
    assert is_stdout(target)
    assert not list(tmp_path.iterdir())


def test_other_descriptors(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write(b"head ")
        file.flush()
        write_text(f"/dev/fd/{file.fileno()}", "body")
    assert (tmp_path / "x").read_text() == "head body"


def test_nothing_reaches_a_pipe_after_an_error(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))
    with pytest.raises(RuntimeError), atomic_path("-") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert raw.getvalue() == b""


def test_a_reader_that_is_gone_is_no_fault_of_the_disk():
    class Gone(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise BrokenPipeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Gone(), 1)))
        with pytest.raises(BrokenPipeError):
            write_text("-", "x" * 100)
        patch.setattr(sys.stdout.buffer.raw, "write", len)


def test_folders_need_a_path(tmp_path):
    with pytest.raises(StorageError, match="folder"), atomic_directory("-"):
        pass
