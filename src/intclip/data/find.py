"""Find photos in files, folders, patterns and lists."""

import glob
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePath

from intclip.data.raw import SUFFIXES as RAW
from intclip.errors import ImageError, reason

# HEIC and JPEG XL are listed so that they are reported if their extras are not installed.
_COMMON = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"),
        *("ppm", "pgm", "pbm", "ico", "heic", "heif", "hif", "jxl"),
    )
)
SUFFIXES = _COMMON | RAW if find_spec("rawpy") else _COMMON
"""Suffixes of photos in folders and patterns; camera raw files only if the extra `raw` is installed."""

GENERATED = frozenset(
    (
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),
        *("@eadir", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@__thumb", "@recently-snapshot"),  # QNAP
    )
)
"""System folders with thumbnails, copies and deleted files, in lower case."""

_log = logging.getLogger("intclip.data")


def find_images(
    paths: str | Path | Iterable[str | Path],
    suffixes: Container[str] = SUFFIXES,
    *,
    exclude: Sequence[str] = (),
    keep_missing: bool = False,
) -> list[Path]:
    """Find photos in files, folders (recursive), glob patterns and .txt lists (one path per line).

    Arguments keep their order, folders and patterns are sorted, and duplicates are dropped.
    Files given directly or in a list can have any suffix. In folders and patterns, files with an image suffix are
    taken, except hidden ones and those in folders of `GENERATED`; the number and kinds of other files are logged.
    Linked folders are followed once.

    Args:
        paths: Files, folders, patterns and lists.
        suffixes: Suffixes for folders and patterns, in lower case.
        exclude: Patterns such as "*_small.jpg" or "drafts" of files and folders to skip: a
            name, or a path inside the given folder.
        keep_missing: Keep missing paths of lists, for callers that continue after errors.

    Raises:
        ImageError: A path does not exist, a pattern matches nothing, or a folder has no photos.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in paths:
        found.update(dict.fromkeys(_expand(path, suffixes, exclude, keep_missing)))
    if not found:
        raise ImageError("no photos given; pass files, folders, patterns such as 'photos/*.jpg', or a .txt list")
    return list(found)


def is_hidden(path: PurePath) -> bool:
    """Return whether a file or a folder above it is hidden (begins with a dot)."""
    return any(part.startswith(".") for part in path.parts)


def is_excluded(path: PurePath, exclude: Sequence[str] = ()) -> bool:
    """Return whether a file is generated or excluded, by its path inside the given folder."""
    parts = path.parts
    if any(part.lower() in GENERATED for part in parts):
        return True
    names = {*parts, *("/".join(parts[: depth + 1]) for depth in range(len(parts)))}
    return any(fnmatchcase(name, pattern.rstrip("/")) for pattern in exclude for name in names)


def _expand(path: str | Path, suffixes: Container[str], exclude: Sequence[str], keep_missing: bool) -> Iterator[Path]:
    text = str(path)
    if not text:  # a shell variable that is not set; as a path it would be the working directory
        raise ImageError("an empty path was given; name a photo or folder")
    path = Path(path)
    try:
        if path.is_dir():
            found = photos_in(path, suffixes, exclude)
            if not found:
                raise ImageError(
                    f"no photos in folder {path}; it should contain .jpg, .png, .webp or other image files"
                )
            yield from found
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from _listed(path, keep_missing)
        elif path.exists():
            yield path
        elif "://" in text:
            raise ImageError(f"{text} is a URL; use `intclip batch`, or download the photo")
        elif any(sign in text for sign in "*?["):
            yield from _pattern(text, suffixes, exclude)
        else:
            raise ImageError(f"no such file or folder: {text}; check the path")
    except OSError as error:
        raise ImageError(f"cannot read {error.filename or text}: {reason(error)}") from error
    except ValueError as error:  # a NUL byte in the path
        raise ImageError(f"not a path: {text!r}") from error


def photos_in(folder: Path, suffixes: Container[str] = SUFFIXES, exclude: Sequence[str] = ()) -> list[Path]:
    """Return the sorted photos in a folder, recursively, see `find_images`; possibly none."""
    found: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    waiting = [folder]
    while waiting:  # linked folders come last, so that photos keep their own paths
        links: list[Path] = []
        for place in waiting:
            for parent, files in _walk(place, folder, exclude, seen, links):
                for name in files:
                    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (fast)
                    if suffix in suffixes:
                        found.append(Path(parent, name))
                    elif suffix != ".xmp":  # sidecars of photos
                        others[suffix or "without suffix"] += 1
        waiting = sorted(links)
    if others:
        _log.info("%s: %s", folder, _left_out(others))
    return sorted(found)


def _walk(
    place: Path, folder: Path, exclude: Sequence[str], seen: set[str], links: list[Path]
) -> Iterator[tuple[str, list[str]]]:
    """Yield new folders with the names of their files; linked folders go to `links`."""
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
    hint = "; to read camera raw files: pip install 'intclip[raw]'" if RAW & others.keys() else ""
    files = "file" if others.total() == 1 else "files"
    return f"skipped {others.total():,} {files}: {kinds}{f', {more:,} others' if more else ''}{hint}"


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
            f"no photos match {pattern}; check the pattern, and quote it so that the shell does not expand it"
        )
    return found


def _listed(listing: Path, keep_missing: bool) -> list[Path]:
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"{listing} is not a text file in UTF-8; save the list of paths as UTF-8") from error
    return list_paths(text, str(listing), listing.parent, keep_missing=keep_missing)


def list_paths(text: str, name: str, folder: Path, *, keep_missing: bool = False) -> list[Path]:
    """Parse a list of photos, one path per line.

    Args:
        text: The list.
        name: Name of the list, for messages.
        folder: Base of relative paths; the working directory is tried next.
        keep_missing: Keep missing paths, unless none exists.

    Raises:
        ImageError: The list is empty, or a photo is missing.
    """
    names = [(row, line.strip()) for row, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not names:
        raise ImageError(f"{name} lists no photos; write one path per line")
    paths = [(row, path, _place(folder, path)) for row, path in names]
    missing = [(row, path) for row, path, place in paths if not os.path.isfile(place)]  # noqa: PTH113 (as below)
    if missing and not (keep_missing and len(missing) < len(paths)):
        row, path = missing[0]
        raise ImageError(f"{name}, line {row}: no such photo: {path}; paths are relative to the list's folder")
    return [place for _, _, place in paths]


def photo_beside(folder: Path, name: str) -> Path:
    """Return the location of a photo of a list or table in a folder.

    Windows paths work on other systems too, and accents composed (Unicode NFC) or not (NFD, as macOS writes them).
    """
    path, slashed = folder / name, name.replace("\\", "/")
    if os.path.exists(path):  # noqa: PTH110 (no error for any name; as below)
        return path
    spellings = (slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD")))
    return next((folder / other for other in spellings if os.path.exists(folder / other)), path)  # noqa: PTH110


def _place(folder: Path, name: str) -> Path:
    beside = photo_beside(folder, name)
    return Path(name) if not os.path.isfile(beside) and os.path.isfile(name) else beside  # noqa: PTH113 (as above)


def _raise(error: OSError) -> None:
    raise error
