"""Files at an address (s3://, gs://, https://, memory:// …), read through fsspec."""

from typing import Any

from intclip.data.naming import describe
from intclip.data.sample import RemoteFile
from intclip.errors import ImageError, MissingExtraError, StorageError, reason

MAX_BYTES = 512 * 2**20
"""Most that is read of one photo: a server may answer with a stream that never ends."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def is_remote(path: str) -> bool:
    """Whether a path is an address rather than a place on this machine's disks."""
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of an address, and the path in it.

    Raises:
        MissingExtraError: The package that speaks this protocol is not installed.
        StorageError: There is no such protocol, or no access.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}")
        raise MissingExtraError(f"{url}: {package} is not installed; install it with: pip install {package}") from error
    except Exception as error:  # every filesystem has errors of its own
        raise StorageError(f"cannot open {url}: {reason(error)}; check the address and your credentials") from error
    return system, path


def read_remote(file: RemoteFile) -> bytes:
    """The bytes of a remote file, or of its part.

    Raises:
        ImageError: Its store cannot be opened; it is not there, is not a regular file, cannot be read, is empty, or is
            larger than `MAX_BYTES`.
        MissingExtraError: The package for its protocol is not installed.
    """
    try:
        system, path = filesystem(file.url)
    except StorageError as error:  # one wrong address must not end a job over a million
        raise ImageError(str(error)) from error
    name = describe(file)
    if file.url.startswith(("file://", "local://")) and system.exists(path) and not system.isfile(path):
        raise ImageError(f"{name} is not a regular file; give an image file")  # a pipe would be waited for without end
    end = file.offset + (MAX_BYTES + 1 if file.size is None else file.size)
    try:
        content: bytes = system.cat_file(path, start=file.offset, end=end)
    except FileNotFoundError as error:
        raise ImageError(f"no such photo: {name}; check the address") from error
    except Exception as error:
        raise ImageError(f"cannot read {name}: {reason(error)}; try again later") from error
    if not content or (file.size is not None and len(content) < file.size):
        raise ImageError(f"{name} is {'truncated' if content else 'empty (0 bytes)'}; put it there again")
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name} is larger than {MAX_BYTES >> 20} MiB; that is not a photo")
    return content
