"""Files at URLs (s3://, gs://, https://, memory:// …), read through fsspec."""

from typing import Any

from intclip.data.naming import describe
from intclip.data.sample import RemoteFile
from intclip.errors import ImageError, MissingExtraError, StorageError, reason

MAX_BYTES = 512 * 2**20
"""Maximum bytes of one photo: a server may send an endless stream."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def is_remote(path: str) -> bool:
    """Return whether a path is a URL, not a local path."""
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it.

    Raises:
        MissingExtraError: The package for this protocol is not installed.
        StorageError: The protocol is unknown, or access is denied.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}")
        raise MissingExtraError(f"{url}: {package} is not installed; install it with: pip install {package}") from error
    except Exception as error:  # filesystems raise various errors
        raise StorageError(f"cannot open {url}: {reason(error)}; check the URL and your credentials") from error
    return system, path


def read_remote(file: RemoteFile) -> bytes:
    """Read a remote file, or a part of it.

    Raises:
        ImageError: The store cannot be opened; or the file is missing, not regular, unreadable, empty, or larger than
            `MAX_BYTES`.
        MissingExtraError: The package for its protocol is not installed.
    """
    try:
        system, path = filesystem(file.url)
    except StorageError as error:  # one wrong URL must not end a job over a million photos
        raise ImageError(str(error)) from error
    name = describe(file)
    if file.url.startswith(("file://", "local://")) and system.exists(path) and not system.isfile(path):
        raise ImageError(f"{name} is not a regular file; give an image file")  # reading a pipe would block
    end = file.offset + (MAX_BYTES + 1 if file.size is None else file.size)
    try:
        content: bytes = system.cat_file(path, start=file.offset, end=end)
    except FileNotFoundError as error:
        raise ImageError(f"no such photo: {name}; check the URL") from error
    except Exception as error:
        raise ImageError(f"cannot read {name}: {reason(error)}; try again later") from error
    if not content or (file.size is not None and len(content) < file.size):
        raise ImageError(f"{name} is {'truncated' if content else 'empty (0 bytes)'}; upload it again")
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name} is larger than {MAX_BYTES >> 20} MiB; that is not a photo")
    return content
