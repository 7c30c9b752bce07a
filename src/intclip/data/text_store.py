"""Text features on disk, by the content of the text, so that a second fit of the same posts encodes none."""

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intclip.backbones.base import Backbone
from intclip.backbones.content import tensor_hashes
from intclip.files import cache_home, digest

FILE = "texts.sqlite"
KEPT = 200_000
"""Maximum number of texts, of all towers together: 0.4 GB for MiniLM. The least recently used are removed first."""
_AT_ONCE = 500


class TextStore:
    """Features of texts by one tower; a database that cannot be read or written is ignored.

    Args:
        path: The database, created by the first `write`.
        tower: Identity of the text tower.
        kept: Maximum number of texts.
    """

    def __init__(self, path: Path, tower: str, kept: int = KEPT) -> None:
        self._path, self._tower, self._kept = path, tower, kept
        self._locked = False

    def read(self, texts: Sequence[str]) -> dict[int, npt.NDArray[np.float32]]:
        """Return features (D,) by index of the texts that are stored."""
        found: dict[int, npt.NDArray[np.float32]] = {}
        if self._locked or not self._path.is_file():
            return found
        places = {self._key(text): place for place, text in enumerate(texts)}
        keys = list(places)
        chunks = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
        with self._tolerant(), closing(self._open()) as base:
            for some in chunks:
                for key, features in base.execute(f"SELECT key, features FROM texts WHERE key IN {_signs(some)}", some):
                    found[places[key]] = np.frombuffer(features, dtype=np.float32)
            with base:  # last: the database may be read-only
                for some in chunks:
                    base.execute(f"UPDATE texts SET wanted = ? WHERE key IN {_signs(some)}", [time.time(), *some])
        return found

    def write(self, texts: Sequence[str], features: npt.NDArray[np.float32]) -> None:
        """Store the features (T, D) of texts."""
        if self._locked:
            return
        rows = [(self._key(text), time.time(), row.tobytes()) for text, row in zip(texts, features, strict=True)]
        with self._tolerant():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as base, base:
                base.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", rows)
                (count,) = base.execute("SELECT count(*) FROM texts").fetchone()
                if count > self._kept:
                    oldest = "SELECT key FROM texts ORDER BY wanted LIMIT ?"
                    base.execute(f"DELETE FROM texts WHERE key IN ({oldest})", [count - self._kept])

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._tower}\n{text}".encode(errors="surrogatepass")).digest()

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=1)
        try:
            base.execute("PRAGMA synchronous = OFF")  # a lost text is encoded again
            base.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, wanted REAL, features BLOB)")
        except sqlite3.Error:
            base.close()
            raise
        return base

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Go on without the database after an error; a damaged one is removed, a locked one is left alone."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            self._locked = code == sqlite3.SQLITE_BUSY
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                self._path.unlink(missing_ok=True)


def use_store(backbone: Backbone) -> None:
    """Let `embed_texts` of a backbone's text tower store its features, if there is a cache folder."""
    home, tower = cache_home(), backbone.text
    if home is not None and tower.store is None:
        identity = digest([type(tower).__name__, backbone.design(), tower.vocabulary(), tensor_hashes(tower)])
        tower.store = TextStore(home / "features" / FILE, identity)


def _signs(values: Sequence[object]) -> str:
    return f"({', '.join('?' * len(values))})"
