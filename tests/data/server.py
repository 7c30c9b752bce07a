"""A local photo server with failures on request."""

import io
import time
from collections import Counter
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, urlsplit

from makers import encode, photo

from local_server import LocalServer, QuietHandler, running


class PhotoServer(LocalServer):
    """Serves `/<behaviour>-<anything>` with that behaviour; counts requests."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.asked: Counter[str] = Counter()
        self.queries: dict[str, dict[str, list[str]]] = {}
        self.times: list[float] = []


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    server: PhotoServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.strip("/")
        with self.server.lock:
            self.server.asked[name] += 1
            self.server.queries[name] = parse_qs(parts.query)
            self.server.times.append(time.monotonic())
        getattr(self, name.partition("-")[0], self.good)(name, self.server.asked[name])

    def reply(self, content: bytes, status: int = 200, kind: str | None = "image/jpeg", **headers: str) -> None:
        super().reply(content, status, kind, **headers)

    def body(self, name: str) -> bytes:
        """Return the photo of a name, at most as wide as requested, as Unsplash does."""
        width = int(self.server.queries[name].get("w", ["400"])[0])
        return encode(photo(len(name) + sum(map(ord, name)), (min(400, width), min(300, width * 3 // 4))))

    def good(self, name: str, _: int) -> None:
        self.reply(self.body(name))

    def large(self, name: str, _: int) -> None:
        self.reply(encode(photo(3, (900, 600))))

    def png(self, name: str, _: int) -> None:
        self.reply(encode(photo(4), "PNG"), kind="image/png")

    def turned(self, name: str, _: int) -> None:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        self.reply(encode(photo(5), exif=exif))

    def untyped(self, name: str, _: int) -> None:
        self.reply(self.body(name), kind=None)

    def gone(self, name: str, _: int) -> None:
        self.reply(b"nothing here", 404, "text/plain")

    def vanished(self, name: str, _: int) -> None:
        self.reply(b"", 410, "text/plain")

    def forbidden(self, name: str, _: int) -> None:
        self.reply(b"no", 403, "text/plain")

    def page(self, name: str, _: int) -> None:
        self.reply(b"<html>please sign in</html>", kind="text/html; charset=utf-8")

    def liar(self, name: str, _: int) -> None:
        self.reply(b"<html>please sign in</html>")

    def flaky(self, name: str, times: int) -> None:
        self.good(name, times) if times > 2 else self.reply(b"oops", 500, "text/plain")

    def dead(self, name: str, _: int) -> None:
        self.reply(b"oops", 500, "text/plain")

    def wait(self, name: str, times: int) -> None:
        self.good(name, times) if times > 1 else self.reply(b"", 429, "text/plain", Retry_After="1")

    def date(self, name: str, times: int) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        self.good(name, times) if times > 1 else self.reply(b"", 503, "text/plain", Retry_After=later)

    def short(self, name: str, times: int) -> None:
        """Announce more than is sent, then disconnect; complete from the second request on."""
        if times > 1:
            return self.good(name, times)
        content = self.body(name)
        self.reply(content[: len(content) // 2], Content_Length=str(len(content)))
        self.close_connection = True
        return None

    def breaks(self, name: str, _: int) -> None:
        content = self.body(name)
        self.reply(content[: len(content) // 2], Content_Length=str(len(content)))
        self.close_connection = True

    def understated(self, name: str, _: int) -> None:
        """Announce less than is sent: half a photo arrives."""
        content = self.body(name)
        self.reply(content[: len(content) // 2], Content_Length=str(len(content) // 2))

    def slow(self, name: str, _: int) -> None:
        """Send pieces, each in time."""
        content = self.body(name)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        stream = io.BytesIO(content)
        while piece := stream.read(len(content) // 4 + 1):
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(0.1)

    def silent(self, name: str, times: int) -> None:
        """Send nothing for long on the first request."""
        if times == 1:
            time.sleep(1.5)
        self.good(name, times)

    def drip(self, name: str, _: int) -> None:
        """Send single bytes without end."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(400):
            self.wfile.write(b"\xff")
            self.wfile.flush()
            time.sleep(0.05)

    def moved(self, name: str, _: int) -> None:
        self.reply(b"", 302, "text/plain", Location=f"/good-{name}?w=32")

    def circle(self, name: str, _: int) -> None:
        self.reply(b"", 302, "text/plain", Location=f"/{name}")

    def empty(self, name: str, _: int) -> None:
        self.reply(b"")


def photo_server() -> AbstractContextManager[PhotoServer]:
    return running(PhotoServer())
