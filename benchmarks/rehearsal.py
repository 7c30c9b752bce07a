"""The whole Intentonomy workflow on the command line, with real annotations and substitute photos.

    INTCLIP_DATA=/data python -m benchmarks.rehearsal --work /tmp/rehearsal

`$INTCLIP_DATA/intentonomy` has the annotations of val and test, `$INTCLIP_DATA/flickr8k/images` the photos that a local
server returns instead of the real ones, at the annotations' addresses with another host. Some addresses fail: gone
(404), busy once (429), interrupted, or an HTML page. Then: prepare, prepare again, check, one epoch of the paper's
IntCLIP on RN101 with random weights (trained on val, because train's annotations are not available), and evaluate on
test. This checks that the workflow completes; its figures are meaningless.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.machine import write_report

FATES = ["gone"] * 2 + ["patience"] * 3 + ["breaks"] * 3 + ["page"] + ["good"] * 91
"""Behaviours of photos in percent, chosen by a hash of the address."""


class Server(ThreadingHTTPServer):
    """Serves real photos at any address, with failures."""

    daemon_threads = True

    def __init__(self, photos: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.photos, self.asked, self.lock = photos, Counter[str](), threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect, which is expected."""


class Handler(BaseHTTPRequestHandler):
    """Answers by the behaviour of an address."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer a request for a photo."""
        path = urlsplit(self.path).path
        number = zlib.crc32(path.encode())
        with self.server.lock:
            self.server.asked[path] += 1
            first = self.server.asked[path] == 1
        fate, content = FATES[number % 100], self.server.photos[number % len(self.server.photos)].read_bytes()
        if fate == "gone":
            return self.answer(404, "text/plain", b"not here")
        if fate == "patience" and first:
            return self.answer(429, "text/plain", b"", retry=True)
        if fate == "page":
            return self.answer(200, "text/html", b"<html>sign in</html>")
        if fate == "breaks" and first:
            self.close_connection = True
            return self.answer(200, "image/jpeg", content[: len(content) // 2], length=len(content))
        return self.answer(200, "image/jpeg", content)

    def answer(self, status: int, kind: str, content: bytes, *, length: int | None = None, retry: bool = False) -> None:
        """Send one answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        if retry:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def annotations(source: Path, target: Path, url: str, limit: int | None) -> dict[str, int]:
    """Copy the annotation files with another host in their addresses; return the number of photos by split."""
    target.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in ("val", "test"):
        content = json.loads((source / f"intentonomy_{split}2020.json").read_text(encoding="utf-8"))
        content["images"] = content["images"][:limit]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        for image in content["images"]:
            address = next(key for key in image if "url" in key)
            parts = urlsplit(image[address])
            image[address] = f"{url}{parts.path}"
        (target / f"intentonomy_{split}2020.json").write_text(json.dumps(content), encoding="utf-8")
        counts[split] = len(kept)
    return counts


def command(*words: str) -> dict[str, object]:
    """Run an intclip command; return its time and the end of its output."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "intclip.cli", *words], capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 1)
    if done.returncode not in (0,):
        sys.exit(f"intclip {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    print(f"$ intclip {' '.join(words)}   # {seconds} s\n{done.stdout.strip()[-1500:]}\n", flush=True)
    return {"command": f"intclip {' '.join(words)}", "seconds": seconds}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True, help="an empty folder to work in")
    options.add_argument("--limit", type=int, help="photos of a split")
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    given = options.parse_args()
    data = Path(os.environ.get("INTCLIP_DATA", "."))
    server = Server(sorted((data / "flickr8k" / "images").glob("*.jpg")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root, run = str(given.work / "intentonomy"), str(given.work / "run")
    url = f"http://127.0.0.1:{server.server_address[1]}"
    counts = annotations(data / "intentonomy", Path(root), url, given.limit)
    prepare = (
        "data",
        "prepare",
        "intentonomy",
        "--data-root",
        root,
        "--split",
        "val",
        "--split",
        "test",
        "--rate",
        "200",
    )
    changes = ["backbone.name=RN101@random", "schedule.epochs=1", "schedule.warmup_epochs=0", "data.train=val"]
    changes += ["data.val=null", "data.options.missing=skip", "cache.path=off"]
    steps = [
        command(*prepare),
        command(*prepare),
        command("data", "check", "intentonomy", "--data-root", root),
        command("train", "paper", "--data-root", root, "--out", run, *(x for c in changes for x in ("--set", c))),
        command("evaluate", run, "--data-root", root, "--split", "test"),
    ]
    report = json.loads((Path(root) / "prepare-report.json").read_text(encoding="utf-8"))
    write_report(
        given.out,
        {"photos": counts, "gone": len(report["gone"]), "failed": len(report["failed"]), "commands": steps},
    )


if __name__ == "__main__":
    main()
