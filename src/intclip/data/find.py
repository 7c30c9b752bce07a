"""Find photos in files, folders, globs and lists."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePath

from intclip.data.raw import SUFFIXES as RAW
from intclip.errors import ImageError, reason

# HEIC and JPEG XL are listed so that a folder's photos are refused by name where their extras are not installed.
_COMMON = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"),
        *("ppm", "pgm", "pbm", "ico", "heic", "heif", "hif", "jxl"),
    )
)
SUFFIXES = _COMMON | RAW if find_spec("rawpy") else _COMMON
"""Names that photos end in, in folders and patterns; raw files of cameras where the extra `raw` is installed."""

GENERATED = frozenset({"@eadir", "$recycle.bin", "system volume information", "__macosx", "#recycle", "lost+found"})
"""Folders that systems and servers fill with thumbnails, copies and deleted files, in lower case."""

_log = logging.getLogger("intclip.data")


def find_images(
    paths: str | Path | Iterable[str | Path],
    suffixes: Container[str] = SUFFIXES,
    *,
    exclude: Sequence[str] = (),
    keep_missing: bool = False,
) -> list[Path]:
    """The photos that files, folders (recursive), glob patterns and .txt lists (one path a line) name.

    Arguments keep their order, what a folder or a pattern holds is sorted, and a photo named twice counts once. Files
    named outright or in a list are taken whatever their suffix. In folders and patterns, files with an image's suffix
    are taken, but none that is hidden or in a folder of `GENERATED`; how many files of which kinds a folder holds
    besides is logged. Linked folders are followed, each folder once.

    Args:
        paths: See above.
        suffixes: What names of files in folders and patterns end in, in lower case.
        exclude: Patterns such as "*_small.jpg" or "drafts" of files and folders to leave out of folders and patterns:
            of a name, or of a path inside the given folder.
        keep_missing: Take paths of lists that do not exist too, for a caller that goes on where one cannot be read.

    Raises:
        ImageError: Something named does not exist, a pattern matches nothing, or a folder holds no photo.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in paths:
        found.update(dict.fromkeys(_expand(path, suffixes, exclude, keep_missing)))
    if not found:
        raise ImageError("no photos were named; give files, folders, patterns such as 'photos/*.jpg', or a .txt list")
    return list(found)


def is_hidden(path: PurePath) -> bool:
    """Whether a file or a folder above it has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def is_excluded(path: PurePath, exclude: Sequence[str] = ()) -> bool:
    """Whether a file was generated or is excluded, by its path inside the folder that was named."""
    parts = path.parts
    if any(part.lower() in GENERATED for part in parts):
        return True
    names = {*parts, *("/".join(parts[: depth + 1]) for depth in range(len(parts)))}
    return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in exclude for name in names)


def _expand(path: str | Path, suffixes: Container[str], exclude: Sequence[str], keep_missing: bool) -> Iterator[Path]:
    text = str(path)
    path = Path(path)
    try:
        if path.is_dir():
            found = photos_in(path, suffixes, exclude)
            if not found:
                raise ImageError(f"no photos in folder {path}; it should hold .jpg, .png, .webp or other image files")
            yield from found
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from _listed(path, keep_missing)
        elif path.exists():
            yield path
        elif "://" in text:
            raise ImageError(f"{text} is an address; `intclip batch` reads addresses, or download the photo")
        elif any(sign in text for sign in "*?["):
            yield from _pattern(text, suffixes, exclude)
        else:
            raise ImageError(f"no such file or folder: {text}; check the path")
    except OSError as error:
        raise ImageError(f"cannot read {error.filename or text}: {error.strerror or reason(error)}") from error
    except ValueError as error:  # a NUL byte in the path
        raise ImageError(f"not a path: {text!r}") from error


def photos_in(folder: Path, suffixes: Container[str] = SUFFIXES, exclude: Sequence[str] = ()) -> list[Path]:
    """The photos in a folder and those below it, sorted, see `find_images`; there may be none."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    waiting = [folder]
    while (
        waiting
    ):  # folders that are linked come after all others, so that a photo's own path is the one it is named by
        links: list[Path] = []
        for place in waiting:
            for parent, files in _walk(place, folder, exclude, seen, links):
                for name in files:
                    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (fast)
                    if suffix in suffixes:
                        found.append(Path(parent, name))
                    else:
                        others[suffix or "without an ending"] += 1
        waiting = sorted(links)
    if others:
        _log.info("%s: %s", folder, _left_out(others))
    return sorted(found)


def _walk(
    place: Path, folder: Path, exclude: Sequence[str], seen: set[str], links: list[Path]
) -> Iterator[tuple[str, list[str]]]:
    """Folders that were not seen yet with the names of their files that count; linked folders go to `links`."""
    for parent, folders, files in os.walk(place, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inside = PurePath(parent).relative_to(folder)
        wanted = [name for name in folders if not (name.startswith(".") or is_excluded(inside / name, exclude))]
        links += [Path(parent, name) for name in wanted if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        folders[:] = wanted
        yield parent, [name for name in files if not (name.startswith(".") or is_excluded(inside / name, exclude))]


def _left_out(others: Counter[str]) -> str:
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(8))
    more = sum(count for _, count in others.most_common()[8:])
    hint = "; to read raw files of cameras: pip install 'intclip[raw]'" if RAW & others.keys() else ""
    files = "file" if others.total() == 1 else "files"
    return f"left out {others.total():,} {files}: {kinds}{f', {more:,} others' if more else ''}{hint}"


def _pattern(pattern: str, suffixes: Container[str], exclude: Sequence[str]) -> list[Path]:
    base = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (absolute patterns)
    found = sorted(
        match
        for match in matches
        if match.suffix.lower() in suffixes
        and match.is_file()
        and not is_excluded(match.relative_to(base[0] + base[1]), exclude)
    )
    if not found:
        raise ImageError(
            f"no photos match {pattern}; check the pattern, and quote it so that the shell leaves it alone"
        )
    return found


def _listed(listing: Path, keep_missing: bool) -> list[Path]:
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"{listing} is not a text file in UTF-8; save the list of paths as UTF-8") from error
    return list_paths(text, str(listing), listing.parent, keep_missing=keep_missing)


def list_paths(text: str, name: str, folder: Path, *, keep_missing: bool = False) -> list[Path]:
    """The paths in a list of photos, one a line.

    Args:
        text: The list.
        name: Name of the list, for messages.
        folder: What its paths are relative to; where there is no such file, to the working directory.
        keep_missing: Take paths that do not exist too, unless none exists.

    Raises:
        ImageError: The list is empty, or names a photo that is not there.
    """
    names = [(row, line.strip()) for row, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not names:
        raise ImageError(f"the list {name} is empty; write one path a line")
    paths = [(row, path, _place(folder, path)) for row, path in names]
    missing = [(row, path) for row, path, place in paths if not place.is_file()]
    if missing and not (keep_missing and len(missing) < len(paths)):
        row, path = missing[0]
        raise ImageError(f"{name}, line {row}: no such photo: {path}; paths are relative to the list's folder")
    return [place for _, _, place in paths]


def _place(folder: Path, name: str) -> Path:
    beside = folder / name
    return Path(name) if not beside.is_file() and Path(name).is_file() else beside


def _raise(error: OSError) -> None:
    raise error
