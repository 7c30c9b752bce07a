"""Find the photos of a batch job's sources: folders, patterns, lists, tables, tars, and URLs."""

import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

from intclip.data.content import PhotoFile
from intclip.data.find import SUFFIXES, find_images, is_excluded, is_hidden, photo_beside
from intclip.data.naming import utf8_name
from intclip.data.remote import filesystem, is_remote
from intclip.data.sample import EmbeddedPhoto, RemoteFile, TarMember
from intclip.data.tables import SUFFIXES as TABLES
from intclip.data.tables import embeds_photos, find_columns, read_rows, unreadable_parquet
from intclip.data.unlabelled import read_standard_input
from intclip.errors import DatasetError, ImageError, StorageError, reason

_TAR, _PARQUET = ".tar", ".parquet"
_FOUND = SUFFIXES | {_TAR}
_MEMBER = re.compile(r"(.*?\.tar(?:\?[^!]*)?)!(.*)", re.DOTALL | re.IGNORECASE)
_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")
_PATTERN = re.compile(r"[*?\[]")


class Reference(NamedTuple):
    """One photo of a source.

    Attributes:
        path: A path, a URL, "archive.tar!member", or "table.parquet!name" for an embedded photo.
        offset: Start of a tar member; row of a photo embedded in a table.
        size: Number of bytes of a tar member.
    """

    path: str
    offset: int | None = None
    size: int | None = None

    def image(self) -> PhotoFile:
        """Return a source for `read_image` and `read_bytes`."""
        # Tables cannot contain file names that are not UTF-8; `_named` wrote the bytes as escapes.
        path = _BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), self.path)
        if self.offset is not None and self.size is not None and (parts := _MEMBER.fullmatch(path)):
            archive, member = parts.groups()
            if is_remote(archive):
                return RemoteFile(archive, member, self.offset, self.size)
            return TarMember(Path(archive), member, self.offset, self.size)
        if self.offset is not None:
            table, _, name = path.rpartition(f"{_PARQUET}!")
            place = Path(table + _PARQUET)
            return EmbeddedPhoto(place, _photo_column(place), self.offset, name)
        return RemoteFile(path) if is_remote(path) else path


def references(sources: Iterable[str], *, exclude: Sequence[str] = ()) -> Iterator[Reference]:
    """List the photos of some sources, in order, with repetition; readability is checked later.

    Args:
        sources: Folders and quoted patterns (of photos and .tar archives), photos, .txt lists (one path or
            URL per line), tables (.csv, .tsv, .jsonl, .parquet, with a photo column), uncompressed .tar archives
            (WebDataset); each local or at a URL such as s3://bucket/photos/ or https://host/list.txt. Paths in lists
            and tables are relative to them. "-" is a list on standard input.
        exclude: See `find_images`; also applied to archives and URLs.

    Raises:
        ImageError: A source does not exist, or has no photos.
        DatasetError: A list, table or archive is malformed.
        StorageError: A URL cannot be opened.
        MissingExtraError: The package for its protocol is not installed.
    """
    for source in sources:
        if source == "-":
            yield from (Reference(utf8_name(str(photo))) for photo in _standard_input())
        else:
            yield from _remote(source, exclude) if is_remote(source) else _local(source, exclude)


def _standard_input() -> Sequence[object]:
    photos = read_standard_input()
    if not all(isinstance(photo, Path) for photo in photos):
        raise ImageError("standard input is not a list of paths; `intclip predict -` reads one photo")
    return photos


def _local(source: str, exclude: Sequence[str]) -> Iterator[Reference]:
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (_TAR, ".txt", *TABLES):
        yield from _file(path, source, str(path.parent), exclude)
    elif suffix in (_TAR, ".txt", *TABLES) and _PATTERN.search(source):
        found = sorted(Path().glob(source) if not path.is_absolute() else Path("/").glob(source.lstrip("/")))
        if not found:
            raise ImageError(f"nothing matches {source}; check the pattern, and quote it")
        for file in found:
            yield from _file(file, str(file), str(file.parent), exclude)
    else:
        for file in find_images(source, _FOUND, exclude=exclude):
            tar = file.suffix.lower() == _TAR and file.is_file()  # opening a pipe would block
            yield from _file(file, str(file), "", exclude) if tar else [Reference(utf8_name(str(file)))]


def _remote(source: str, exclude: Sequence[str]) -> Iterator[Reference]:
    system, path = filesystem(source)
    suffix = Path(path.partition("?")[0]).suffix.lower()
    pattern = not source.startswith("http") and _PATTERN.search(path)  # in http URLs a question mark begins a query
    try:
        if pattern:
            files = sorted(str(file) for file in system.glob(path))
        elif suffix in (_TAR, ".txt", *TABLES, *SUFFIXES):
            files = []
        else:
            files = sorted(str(file) for file in system.find(path))
        if not files and suffix in SUFFIXES and not pattern:
            yield Reference(source)
            return
        if not files and suffix == _TAR:
            with system.open(path, "rb") as stream:
                yield from _members(stream, source, exclude)
            return
        if not files and suffix in (".txt", *TABLES):
            with tempfile.TemporaryDirectory(prefix="intclip-") as folder:
                local = Path(folder, f"list{suffix}")
                system.get_file(path, str(local))
                yield from _file(local, source, source.partition("?")[0].rpartition("/")[0], exclude)
            return
    except FileNotFoundError as error:
        raise ImageError(f"nothing at {source}; check the URL") from error
    except OSError as error:
        raise StorageError(f"cannot read {source}: {reason(error)}; check the URL and your credentials") from error
    kept = [
        system.unstrip_protocol(file)
        for file in files
        if PurePath(file).suffix.lower() in _FOUND and not _left_out(file.removeprefix(path), exclude)
    ]
    if not kept:
        raise ImageError(f"no photos at {source}; check the URL")
    for url in kept:
        yield from _remote(url, exclude) if url.lower().endswith(_TAR) else [Reference(utf8_name(url))]


def _left_out(inside: str, exclude: Sequence[str]) -> bool:
    path = PurePath(inside.lstrip("/"))
    return is_hidden(path) or is_excluded(path, exclude)


def _file(path: Path, name: str, base: str, exclude: Sequence[str]) -> Iterator[Reference]:
    """List the photos of a list, table or archive; relative paths start at `base`."""
    suffix = path.suffix.lower()
    if suffix == _TAR:
        try:
            with path.open("rb") as stream:
                yield from _members(stream, name, exclude)
        except OSError as error:
            raise DatasetError(f"cannot read {name}: {reason(error)}; check the path") from error
        return
    if suffix == _PARQUET and not is_remote(name) and embeds_photos(_photo_type(path, name)):
        yield from _embedded(path, name)
        return
    empty = True
    for cell in _lines(path, name) if suffix == ".txt" else _cells(path, name):
        empty = False
        place = f"{base}/{cell}"
        if is_remote(cell) or cell.startswith("/"):
            place = cell
        elif "\\" in cell and not is_remote(base):
            place = str(photo_beside(Path(base), cell))
        yield Reference(utf8_name(place))
    if empty:
        raise ImageError(f"{name} has no photos; write one path per line")


def _lines(path: Path, name: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from (text for line in lines if (text := line.strip()))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{name} is not a text file in UTF-8; save the list of paths as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {name}: {reason(error)}") from error


def _cells(path: Path, name: str) -> Iterator[str]:
    if path.suffix.lower() == ".parquet":
        found: Iterable[object] = _parquet_cells(path, name)
    else:
        found = (row.known.get("image") for row in read_rows(path))
    for number, cell in enumerate(found, 1):
        if not isinstance(cell, str) or not cell.strip():
            raise DatasetError(f"{name}, row {number}: the photo is missing; fill it in or remove the row")
        yield cell.strip()


def _parquet_cells(path: Path, name: str) -> Iterator[object]:
    """Read the photo column of a Parquet file in blocks, since tables may be larger than memory."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            column = find_columns(table.schema_arrow.names, None, name).get("image")
            if column is None:
                raise DatasetError(f"{name} has no photo column; call it image or path")
            for batch in table.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable_parquet(name, error) from error


def _photo_type(path: Path, name: str) -> Any:
    """Return the Arrow type of a table's photo column."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable_parquet(name, error) from error
    column = find_columns(schema.names, None, name).get("image")
    if column is None:
        raise DatasetError(f"{name} has no photo column; call it image or path")
    return schema.field(column).type


@lru_cache(maxsize=8)
def _photo_column(table: Path) -> str:
    import pyarrow.parquet

    try:
        return find_columns(pyarrow.parquet.read_schema(table).names, None, str(table))["image"]
    except Exception:  # reading the photo will report the table's error
        return ""


def _embedded(path: Path, name: str) -> Iterator[Reference]:
    """List the photos embedded in a table."""
    rows = read_rows(path)
    for number, row in enumerate(rows):
        photo = row.known["image"]
        yield Reference(utf8_name(f"{name}!{photo.name}"), number)


def _members(stream: IO[bytes], name: str, exclude: Sequence[str]) -> Iterator[Reference]:
    """List the photos of an uncompressed tar from its headers."""
    empty = True
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                wanted = PurePath(info.name).suffix.lower() in SUFFIXES and not _left_out(info.name, exclude)
                if info.isreg() and wanted:
                    empty = False
                    yield Reference(utf8_name(f"{name}!{info.name}"), info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DatasetError(f"{name} is not an uncompressed tar, or is damaged ({error}); fetch it again") from error
    if empty:
        raise DatasetError(f"{name} has no photos; give a tar with .jpg, .png, .webp or other image files")
