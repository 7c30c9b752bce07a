"""Write files atomically: to a temporary file, then rename.

Links are followed. Of a file with several names (hard links) only the given one changes, so that a backup made of hard
links keeps its content. "-" (standard output), pipes and character devices such as /dev/stdout are written to directly.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, BinaryIO

from intclip.errors import StorageError, reason

STDOUT = "-"
"""Target for standard output."""
CACHE_VARIABLE = "INTCLIP_CACHE"
"""Environment variable for the cache folder; "off" disables caching."""

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_NAMED = {STDOUT: 1, "/dev/stdout": 1, "/dev/stderr": 2}
Target = str | os.PathLike[str]
_Bytes = io.FileIO | BinaryIO


def cache_home() -> Path | None:
    """Return the cache folder: `INTCLIP_CACHE`, else intclip in the user's cache folder; None if off.

    Raises:
        StorageError: The variable is not a folder.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        place = None if chosen.lower() in ("", "0", "off", "no") else Path(chosen).expanduser()
        if place is not None and place.exists() and not place.is_dir():
            raise StorageError(f"{CACHE_VARIABLE} names {chosen}, which is not a folder; correct it or set it to off")
        return place
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "intclip"


def is_stdout(target: Target) -> bool:
    """Return whether `target` is standard output, so that messages must go elsewhere."""
    return _descriptor(target) == 1


def is_stream(target: Target) -> bool:
    """Return whether `target` is written directly: standard output, a pipe, a character device."""
    return _stream_opener(Path(target)) is not None


def check_target(target: Target, *, folder: bool = False, replace: bool = False) -> None:
    """Check that a file, or with `folder` a directory, can be written, without creating anything.

    For commands, before long work: writing reports the same errors, but only afterwards.

    Args:
        target: A file or a directory.
        folder: It is a directory.
        replace: An existing directory is replaced as a whole (`atomic_directory`), which also changes its parent.

    Raises:
        StorageError: As `atomic_path`, `make_directory` and `atomic_directory`.
    """
    target = Path(target)
    if is_stream(target):
        if folder:
            raise _folder_needed(target)
        return
    place = _followed(target, folder=folder)
    try:
        parent = place if folder else place.parent
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        changed = [place.absolute().parent] if replace and place.exists() else []
        if not parent.is_dir():
            number = errno.EEXIST if parent == place else errno.ENOTDIR
        elif not all(os.access(place, os.W_OK | os.X_OK) for place in (parent, *changed)):
            number = errno.EACCES
        elif replace and place.is_mount():
            number = errno.EBUSY
        else:
            return
        raise OSError(number, os.strerror(number))
    except OSError as error:
        raise _storage_error(target, error) from error


@contextmanager
def atomic_path(target: Target) -> Iterator[Path]:
    """Yield a temporary path; on success it is flushed to disk and renamed to `target`, else removed.

    Parent folders are created; on failure empty ones are removed again. Targets that are written
    directly receive the complete content on success.

    Raises:
        StorageError: The file cannot be written (no permission, disk full, or it is a folder).
        BrokenPipeError: The reader of a pipe is gone.
    """
    target = Path(target)
    if (opener := _stream_opener(target)) is not None:
        with tempfile.TemporaryDirectory(prefix="intclip-") as folder:
            partial = Path(folder, target.name)
            try:
                yield partial
                with opener() as stream, partial.open("rb") as content:
                    while chunk := content.read(1 << 20):
                        _write(stream, chunk)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _storage_error(target, error) from error
        return
    target = _followed(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    made: list[Path] = []
    try:
        made = _missing_folders(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
        made.clear()  # keep the folders, even if the target is removed later
    except OSError as error:
        raise _storage_error(target, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
        _remove_empty(made)


@contextmanager
def atomic_text(target: Target) -> Iterator[io.TextIOBase]:
    """Yield a UTF-8 text file for `target`, like `atomic_path`; standard output and pipes receive text immediately."""
    if (opener := _stream_opener(Path(target))) is None:
        with atomic_path(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    try:
        with opener() as stream:
            yield _DirectText(stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _storage_error(Path(target), error) from error


@contextmanager
def atomic_directory(target: Target, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it is renamed to `target`, else removed.

    Args:
        target: The directory to create.
        overwrite: Replace an existing directory; otherwise it is an error.

    Raises:
        StorageError: The directory exists, or cannot be written.
    """
    target = Path(target)
    if is_stream(target):
        raise _folder_needed(target)
    target = _followed(target, folder=True)
    if target.exists() and not overwrite:
        raise StorageError(f"{target} exists; choose another path or remove it first")
    suffix = uuid.uuid4().hex[:8]
    partial = target.with_name(f".{target.name}.{suffix}.partial")
    replaced = target.with_name(f".{target.name}.{suffix}.replaced")
    made: list[Path] = []
    try:
        made = _missing_folders(target.parent)
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                _sync(path)
        if target.exists():
            if not overwrite:
                raise StorageError(f"{target} exists: another process made it meanwhile; choose another path")
            target.rename(replaced)
        partial.rename(target)
        made.clear()  # keep the folders, even if the target is removed later
    except OSError as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise _storage_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        _remove_empty(made)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, if missing.

    Raises:
        StorageError: It cannot be created, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _storage_error(path, error) from error


def write_text(target: Target, text: str) -> None:
    """Write a whole text file atomically, in UTF-8."""
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def hold_lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file against other processes; the system releases it when this process ends.

    Parent folders are created; on failure empty ones are removed again.

    Args:
        path: The lock file; it stays, empty.
        message: Error message if another process holds it.

    Raises:
        StorageError: Another process holds it, or it cannot be written.
    """
    made = _missing_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise _storage_error(path, error) from error
    with file:
        for attempt in range(5):  # `is_locked` holds it for a moment
            if attempt:
                time.sleep(0.05)
            if _try_lock(file):
                break
        else:
            raise StorageError(message)
        try:
            yield
        except BaseException:
            with suppress(OSError):
                if made and list(path.parent.iterdir()) == [path]:
                    path.unlink()
                    _remove_empty(made)
            raise


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock file."""
    if not path.exists():
        return False
    with path.open("r") as file:
        return not _try_lock(file)


def _try_lock(file: IO[str]) -> bool:
    if sys.platform == "win32":  # not supported on Windows
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def digest(content: object) -> str:
    """SHA-256 of plain data, through its sorted JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as lower-case hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> tuple[str | int, ...]:
    """Return path, size, times and inode of a file: as long as they stay, so does its content."""
    status = path.stat()
    # Also st_ctime: copies may keep the modification time, but no program can set this one.
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _descriptor(target: Target) -> int | None:
    """Return the file descriptor of a name."""
    name = os.fspath(target)
    found = _DESCRIPTOR.fullmatch(name)
    return int(found[1]) if found else _NAMED.get(name)


class _DirectText(io.TextIOBase):
    """UTF-8 text that reaches a stream at once, so that closing it never waits for a slow reader."""

    def __init__(self, stream: _Bytes) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        _write(self._stream, text.encode())
        return len(text)


def _write(stream: _Bytes, content: bytes) -> None:
    """Write all bytes: a signal may end an unbuffered write early."""
    left = memoryview(content)
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _stream_opener(target: Path) -> Callable[[], AbstractContextManager[_Bytes]] | None:
    """Return how to open a target that is written directly, unbuffered; None for a regular file.

    Raises:
        StorageError: It is a block device or a socket.
    """
    number = _descriptor(target)
    if number == 1:
        return _standard_output
    if number is not None:
        return lambda: os.fdopen(os.dup(number), "wb", buffering=0)
    try:
        mode = target.stat().st_mode
    except (OSError, ValueError):  # it does not exist yet, or writing it reports the error
        return None
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise StorageError(f"{target} is not a file but a {'device' if stat.S_ISBLK(mode) else 'socket'}; give a path")
    return (lambda: target.open("wb", buffering=0)) if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else None


def _standard_output() -> AbstractContextManager[_Bytes]:
    sys.stdout.flush()
    return nullcontext(sys.stdout.buffer)


def _followed(target: Path, *, folder: bool = False) -> Path:
    """Resolve a target that is a link.

    Raises:
        StorageError: It is a folder, read-only, or a cyclic link.
    """
    try:
        place = Path(os.path.realpath(target, strict=True)) if target.exists() else Path(os.path.realpath(target))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot write {target}: {reason(error)}; choose another path") from error
    if place.is_symlink():
        raise StorageError(f"cannot write {target}: cyclic links; choose another path")
    if not folder and place.is_dir():
        raise StorageError(f"cannot write {target}: it is a folder; name a file")
    if not folder and place.exists():
        try:  # a rename would replace a file that may not be written
            os.close(os.open(place, os.O_WRONLY))
        except OSError as error:
            raise _storage_error(target, error) from error
    return place if target.is_symlink() else target


def _missing_folders(folder: Path) -> list[Path]:
    """Return the missing folders of a path, deepest first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, deepest first, up to the first non-empty one."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _folder_needed(target: Path) -> StorageError:
    return StorageError(f"{target}: the result is a folder; give a path for it")


def _storage_error(target: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write {target}: {reason(error)}; free space or choose a writable place")
