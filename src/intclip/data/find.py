"""Find photos in files, folders, globs and lists."""

import glob
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from intclip.errors import ImageError

# HEIC is listed so that a folder's HEIC photos are refused by name instead of passed over in silence.
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"),
        *("ppm", "pgm", "pbm", "ico", "heic", "heif"),
    )
)
"""What photos in folders and patterns are told by."""


def find_images(paths: str | Path | Iterable[str | Path], suffixes: Container[str] = SUFFIXES) -> list[Path]:
    """The photos that files, folders (recursive), glob patterns and .txt lists (one path a line) name.

    Arguments keep their order, what a folder or a pattern holds is sorted, and a photo named twice counts once. Files
    named outright are taken whatever their suffix; in folders, files with an image's suffix, but not hidden ones.

    Args:
        paths: See above.
        suffixes: What files in folders and patterns are told by, in lower case.

    Raises:
        ImageError: Something named does not exist, a pattern matches nothing, or a folder holds no photo.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in paths:
        found.update(dict.fromkeys(_expand(path, suffixes)))
    if not found:
        raise ImageError("no photos were named; give files, folders, patterns such as 'photos/*.jpg', or a .txt list")
    return list(found)


def utf8_name(path: str) -> str:
    r"""The path as text that is UTF-8: bytes that are not become \\udcXX."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()
    return path


def _expand(path: str | Path, suffixes: Container[str]) -> Iterator[Path]:
    text = str(path)
    path = Path(path)
    try:
        if path.is_dir():
            yield from _folder(path, suffixes)
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from _listed(path)
        elif path.exists():
            yield path
        elif any(sign in text for sign in "*?["):
            yield from _pattern(text, suffixes)
        else:
            raise ImageError(f"no such file or folder: {text}; check the path")
    except OSError as error:
        raise ImageError(f"cannot read {error.filename or text}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the path
        raise ImageError(f"not a path: {text!r}") from error


def _folder(folder: Path, suffixes: Container[str]) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 (fast)
        ]
    if not found:
        raise ImageError(f"no photos in folder {folder}; it should hold .jpg, .png, .webp or other image files")
    return sorted(found)


def _pattern(pattern: str, suffixes: Container[str]) -> list[Path]:
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (absolute patterns)
    found = sorted(match for match in matches if match.suffix.lower() in suffixes and match.is_file())
    if not found:
        raise ImageError(
            f"no photos match {pattern}; check the pattern, and quote it so that the shell leaves it alone"
        )
    return found


def _listed(listing: Path) -> Iterator[Path]:
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ImageError(f"{listing} is not a text file in UTF-8; save the list of paths as UTF-8") from error
    names = [(row, line.strip()) for row, line in enumerate(lines, 1) if line.strip()]
    if not names:
        raise ImageError(f"the list {listing} is empty; write one path a line")
    for row, name in names:
        # A path in a list is meant from the list's folder; one from the working directory is accepted too.
        path = listing.parent / name
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            raise ImageError(f"{listing}, line {row}: no such photo: {name}; paths are relative to the list's folder")
        yield path


def _raise(error: OSError) -> None:
    raise error
