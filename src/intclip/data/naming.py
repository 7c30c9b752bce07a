"""Names of photos in messages and tables."""

import os
from typing import Any

import numpy as np

from intclip.data.sample import EmbeddedPhoto, Lenient, RemoteFile, TarMember


def describe(source: Any, position: int | None = None) -> str:
    """Return a photo's name for messages and tables: its path, archive and member, or its type.

    Args:
        source: The photo; None where a post has words alone.
        position: Its place in a list, from 0: what has no name of its own is named by it.
    """
    if isinstance(source, Lenient):
        return describe(source.source, position)
    if isinstance(source, TarMember):
        return utf8_name(f"{source.archive}!{source.name}")
    if isinstance(source, EmbeddedPhoto):
        return utf8_name(f"{source.table}!{source.name}")
    if isinstance(source, RemoteFile):
        return source.url if source.name is None else utf8_name(f"{source.url}!{source.name}")
    if isinstance(source, str | os.PathLike):
        return utf8_name(os.fspath(source))
    if isinstance(name := getattr(source, "name", None), str):  # an open file
        return utf8_name(name)
    if position is not None:
        return f"{'text' if source is None else 'image'} {position + 1}"
    kinds = dict.fromkeys((bytes, bytearray, memoryview), "the given image data") | {np.ndarray: "the given array"}
    return kinds.get(type(source), "the given image")


def utf8_name(path: str) -> str:
    r"""Return the path as UTF-8 text; invalid bytes become \\udcXX."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()
    return path
