"""A service in its own process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intclip.serving.client import Client

UPLOAD_SECONDS = 2.0
_CODE = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from watched import WatchedPredictor
from intclip.serving.api import create_api
from intclip.serving.observe import configure_logs
from intclip.serving.server import bind, run
from intclip.serving.settings import Settings
asked = json.loads(sys.argv[1])
configure_logs()
model = WatchedPredictor()
model.watched.delay, model.watched.poison = asked["delay"], asked["poison"]
settings = Settings(
    max_photos=4, upload_seconds={UPLOAD_SECONDS}, max_body_bytes=1_000_000, api_key=asked["key"] or None
)
run(create_api({{"a": model}}, settings), bind("127.0.0.1", asked["port"]), connections=64, grace_seconds=30)
"""


@contextmanager
def running(
    folder: Path, *, delay: float = 0.0, key: str = "", port: int = 0, poison: int | None = None
) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """Start a server with the fake model; yield it with its address. Its log is a file.

    Args:
        folder: Folder of the log.
        delay: Seconds per batch.
        key: API key of clients.
        port: Port; 0 for any free one.
        poison: See `WatchedEngine`.
    """
    asked = json.dumps({"delay": delay, "key": key, "port": port, "poison": poison})
    with serving(folder, "-c", _CODE, asked) as found:
        yield found


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """Run Python with arguments that start a service; see `running`."""
    log = folder / "log"
    with log.open("w") as stream:
        server = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=stream, env=dict(os.environ))
    try:
        end = time.monotonic() + 120
        # Before it, there may be a line about preparing a model.
        while not (lines := [line for line in log.read_text().splitlines() if '"url"' in line]):
            assert time.monotonic() < end
            assert server.poll() is None
            time.sleep(0.05)
        url = json.loads(lines[0])["url"]
        with Client(url) as probe:
            while not probe.ready():
                assert time.monotonic() < end
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
        yield server, url, log
    finally:
        server.kill()
        server.wait()
