"""Cache of converted graphs, so that a model loads without torch from the second time on.

An image tower is stored once for all models on it; a model's graph starts at the tower's features and
references the tower. The key covers everything that the outputs depend on: weights, labels, sentences, options, this
package's code, the converter. The least recently used graphs are removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intclip.backbones.sources import source_files
from intclip.errors import BundleError, StorageError
from intclip.files import atomic_directory, cache_home, digest, file_stamp, sha256_file
from intclip.inference.exported import SUFFIXES, Graph, GraphFormat, Tower, open_graph, open_tower

KEPT = 24
"""Maximum number of cached graphs, of towers and of hashes: a tower takes 14 MB (`lite`) to 230 MB (RN101), a model
without trained layers less than 1 MB."""
_TOWER = "tower"
"""File with the key of a graph's tower."""
_HASH = "sha256"
"""File with the hash of other files' contents."""
_CODE = ("backbones", "clip_tokens.py", "inference", "labels", "methods")


def graph_key(**parts: Any) -> str:
    """Hash everything that a graph depends on; `parts` are plain data."""
    parts["code"] = _code()
    for package in ("openvino", "onnx"):
        try:
            parts[package] = version(package)
        except PackageNotFoundError:
            parts[package] = None
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def cached_graph(key: str, format: GraphFormat) -> Graph | None:
    """Return the graph of this key, starting at pixels, or None; a damaged one is removed."""
    folder = _folder("graphs", key, format)
    if folder is None or not folder.is_dir():
        return None
    try:
        graph = open_graph(folder / _file(format))
        tower_key = (folder / _TOWER).read_text()
    except (BundleError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    _used(folder)
    if not tower_key:
        return graph
    tower = cached_tower(tower_key, format)
    return None if tower is None else tower.join(graph)


def keep_graph(key: str, graph: Graph, tower_key: str = "") -> None:
    """Store a model's graph, if the cache is writable.

    Args:
        key: From `graph_key`.
        graph: Graph that starts at the tower's features or at pixels.
        tower_key: Key of its tower; empty if it has none.
    """

    def write(partial: Path) -> None:
        graph.save(partial / _file(graph.format))
        (partial / _TOWER).write_text(tower_key)

    _keep(_folder("graphs", key, graph.format), write)


def cached_tower(key: str, format: GraphFormat) -> Tower | None:
    """Return the tower of this key, or None; a damaged one is removed."""
    folder = _folder("towers", key, format)
    if folder is None or not folder.is_dir():
        return None
    try:
        tower = open_tower(folder / _file(format))
    except (BundleError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    _used(folder)
    return tower


def keep_tower(key: str, tower: Tower) -> None:
    """Store a tower, if the cache is writable."""
    _keep(_folder("towers", key, tower.format), lambda partial: tower.save(partial / _file(tower.format)))


def weights_identity(backbone: str, checkpoint: str | os.PathLike[str] | None) -> Any:
    """Return what identifies a backbone's weights, without importing them.

    Files (the weights and those next to them) are identified by name and content. Weights that
    are not downloaded yet are identified by name: `backbones.hub` ensures their content.
    """
    return [backbone, str(checkpoint), _content(source_files(backbone, checkpoint))]


@lru_cache(maxsize=1)
def _code() -> str:
    return _content(Path(__file__).parents[1] / room for room in _CODE)


def _content(paths: Iterable[Path]) -> str:
    """Hash the names and contents of files and of all files in folders.

    Not path and times: they change when a package or an image of a container is copied to another machine. But as
    long as they stay, the cache remembers the hash, since weights may take a second to read.
    """
    files: list[tuple[Path, Path]] = []
    for path in paths:
        inside = sorted(path.rglob("*.*")) if path.is_dir() else [path]
        files += [(file, path.parent) for file in inside if file.suffix != ".pyc" and file.is_file()]
    home = cache_home()
    folder = None if home is None else home / "hashes" / digest([file_stamp(file) for file, _ in files])
    if folder is not None:
        with suppress(OSError):
            found = (folder / _HASH).read_text()
            _used(folder)
            return found
    found = digest([(file.relative_to(parent).as_posix(), sha256_file(file)) for file, parent in files])
    _keep(folder, lambda partial: (partial / _HASH).write_text(found))
    return found


def _keep(folder: Path | None, write: Callable[[Path], object]) -> None:
    if folder is None:
        return
    with suppress(StorageError):
        with atomic_directory(folder, overwrite=True) as partial:
            write(partial)
        _remove_oldest(folder.parent)


def _folder(kind: str, key: str, format: GraphFormat) -> Path | None:
    home = cache_home()
    return None if home is None else home / kind / f"{key}-{format}"


def _file(format: GraphFormat) -> str:
    return "model" + next(suffix for suffix, name in SUFFIXES.items() if name == format)


def _used(folder: Path) -> None:
    """Note the time for `_remove_oldest`; a cache may be read-only."""
    with suppress(OSError):
        os.utime(folder)


def _remove_oldest(folder: Path) -> None:
    ages = {}
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            with suppress(FileNotFoundError):  # another process removes them too
                ages[entry] = entry.stat().st_mtime
    for entry in sorted(ages, key=lambda entry: ages[entry], reverse=True)[KEPT:]:
        shutil.rmtree(entry, ignore_errors=True)
