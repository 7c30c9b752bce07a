"""Names of photos in messages and tables."""

import os
from typing import Any

import numpy as np

from intclip.data.sample import EmbeddedPhoto, Lenient, RemoteFile, TarMember


def describe(source: Any) -> str:
    """Return a photo's name for messages and tables: its path, archive and member, or its type."""
    if isinstance(source, Lenient):
        return describe(source.source)
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
    kinds = {bytes: "the given image data", np.ndarray: "the given array"}
    return kinds.get(type(source), "the given image")


def has_name(source: Any) -> bool:
    """Return whether the name by `describe` is unique: a path, a member, an open file."""
    return describe(source) not in ("the given image data", "the given array", "the given image")


def utf8_name(path: str) -> str:
    r"""Return the path as UTF-8 text; invalid bytes become \\udcXX."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()
    return path
