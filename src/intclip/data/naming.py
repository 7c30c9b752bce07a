"""How messages and tables name a photo."""

import os
from typing import Any

import numpy as np

from intclip.data.sample import EmbeddedPhoto, Lenient, RemoteFile, TarMember


def describe(source: Any) -> str:
    """How messages and tables name a photo: its path, archive and member, or what kind of object it is."""
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
    """Whether `describe` names this photo and no other: a path, a member, an open file."""
    return describe(source) not in ("the given image data", "the given array", "the given image")


def utf8_name(path: str) -> str:
    r"""The path as text that is UTF-8: bytes that are not become \\udcXX."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()
    return path
