"""Converted graphs kept on disk, so that a model that was loaded once loads again without torch.

An image tower is kept once, for all models over it; a model's own graph starts where the tower ends, and names its
tower. The key is what the numbers depend on: weights, labels, sentences, options, this package's code, the converter. A
changed part gives another key; the least recently used graphs are removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intclip.backbones.sources import source_files
from intclip.errors import BundleError, StorageError
from intclip.files import atomic_directory, cache_home
from intclip.inference.exported import SUFFIXES, Graph, GraphFormat, Tower, open_graph, open_tower

KEPT = 24
"""Graphs of models, and towers, that stay in the cache each: a tower takes 14 MB (`lite`) to 230 MB (RN101), a model
without trained layers less than 1 MB."""
_TOWER = "tower"
"""File beside a model's graph: the key of its tower."""
_CODE = ("backbones", "inference", "labels", "methods")


def graph_key(**parts: Any) -> str:
    """Hash of everything a graph depends on; `parts` are plain data."""
    parts["code"] = _stamps(Path(__file__).parents[1] / room for room in _CODE)
    for package in ("openvino", "onnx"):
        try:
            parts[package] = version(package)
        except PackageNotFoundError:
            parts[package] = None
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def cached_graph(key: str, format: GraphFormat) -> Graph | None:
    """The graph of this key, from pixels on, or None; a damaged one is removed."""
    folder = _folder("graphs", key, format)
    if folder is None or not folder.is_dir():
        return None
    try:
        graph = open_graph(folder / _file(format))
        tower_key = (folder / _TOWER).read_text()
        os.utime(folder)
    except (BundleError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if not tower_key:
        return graph
    tower = cached_tower(tower_key, format)
    return None if tower is None else tower.join(graph)


def keep_graph(key: str, graph: Graph, tower_key: str = "") -> None:
    """Put a model's graph into the cache, where that can be written.

    Args:
        key: Of `graph_key`.
        graph: From the tower's features on, or from the pixels on.
        tower_key: Of its tower; empty where it needs none.
    """

    def write(partial: Path) -> None:
        graph.save(partial / _file(graph.format))
        (partial / _TOWER).write_text(tower_key)

    _keep(_folder("graphs", key, graph.format), write)


def cached_tower(key: str, format: GraphFormat) -> Tower | None:
    """The tower of this key, or None; a damaged one is removed."""
    folder = _folder("towers", key, format)
    if folder is None or not folder.is_dir():
        return None
    try:
        tower = open_tower(folder / _file(format))
        os.utime(folder)
    except (BundleError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return tower


def keep_tower(key: str, tower: Tower) -> None:
    """Put a tower into the cache, where that can be written."""
    _keep(_folder("towers", key, tower.format), lambda partial: tower.save(partial / _file(tower.format)))


def weights_identity(backbone: str, checkpoint: str | os.PathLike[str] | None) -> Any:
    """What tells one backbone's weights from another's, without reading or importing them.

    Files, the weights and what lies beside them, are told by path, size, inode and times of change. Weights that are
    still to be downloaded are told by name: `backbones.hub` holds them to one content.
    """
    return [backbone, str(checkpoint), _stamps(source_files(backbone, checkpoint))]


def _stamps(paths: Iterable[Path], *, code: bool = True) -> list[tuple[str | int, ...]]:
    """Path, size and time of change of files and of all files in folders."""
    found: list[tuple[str | int, ...]] = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix != ".pyc" and (code or file.suffix != ".py"):
                status = file.stat()
                # st_ctime too: a copy may keep the time of change, and no program can set this one.
                found.append(
                    (str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                )
    return found


def _keep(folder: Path | None, write: Callable[[Path], None]) -> None:
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


def _remove_oldest(folder: Path) -> None:
    entries = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[KEPT:]:
        shutil.rmtree(entry, ignore_errors=True)
