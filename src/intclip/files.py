"""Write files so that they are whole or not there: write beside the target, then rename."""

import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from intclip.errors import StorageError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `target`; on success it is flushed to disk and renamed to `target`, else removed.

    Folders above it are made; on failure those that hold nothing go again.

    Raises:
        StorageError: The file cannot be written (no permission, disk full).
    """
    target = Path(target)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    made: list[Path] = []
    try:
        made = _missing_folders(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        partial.replace(target)
        made.clear()  # they are wanted now, whoever may take the target away again
    except OSError as error:
        raise _storage_error(target, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
        _remove_empty(made)


@contextmanager
def atomic_directory(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `target`; on success it is renamed to `target`, else removed.

    Args:
        target: The directory to create.
        overwrite: Replace an existing directory; without it, an existing one is refused.

    Raises:
        StorageError: The directory exists already, or cannot be written.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise StorageError(f"{target} exists already; choose another path or remove it first")
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
            target.rename(replaced)
        partial.rename(target)
        made.clear()  # they are wanted now, whoever may take the target away again
    except OSError as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise _storage_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        _remove_empty(made)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there yet.

    Raises:
        StorageError: It cannot be made, or a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _storage_error(path, error) from error


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a whole text file atomically, in UTF-8."""
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def hold_lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file against other processes; the system frees it when this one ends, however it ends.

    Folders above it are made; on failure those that hold nothing else go again.

    Args:
        path: The lock file; it stays, empty.
        message: What to say when another process holds it.

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
        for attempt in range(5):  # whoever only asks, see `is_locked`, holds it for a moment
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
    """Whether a process holds a lock file."""
    if not path.exists():
        return False
    with path.open("r") as file:
        return not _try_lock(file)


def _try_lock(file: IO[str]) -> bool:
    if sys.platform == "win32":  # no such locks: whoever starts a job twice there has been warned by its guide
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as lower-case hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing_folders(folder: Path) -> list[Path]:
    """This folder and those above it that are not there, the deepest first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, up to the first that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _storage_error(target: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(f"cannot write {target}: {reason}; free space or choose a writable place")
