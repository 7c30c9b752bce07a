"""Downloads with a common rate limit, retries with backoff, Retry-After support and size checks."""

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

from intclip.errors import reason
from intclip.extras import require

MAX_BYTES = 64 * 2**20
"""Maximum response size."""
ATTEMPTS = 5
"""Attempts per URL."""
TIMEOUT = 20.0
"""Seconds to connect, and between two chunks of a response; a whole response may take four times as long."""
BACKOFF = 1.0
"""Seconds before the second attempt; doubled each time, with jitter."""
MAX_WAIT = 120.0
"""Maximum accepted Retry-After in seconds."""


class Gone(Exception):
    """The URL does not exist any more (404, 410)."""


class Failed(Exception):
    """The download failed; a later attempt may succeed.

    Attributes:
        unreachable: Whether no server answered.
    """

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable


class _Again(Failed):
    """A failed attempt that can be retried after `after` seconds."""

    def __init__(self, reason: str, *, after: float = 0, unreachable: bool = False) -> None:
        super().__init__(reason, unreachable=unreachable)
        self.after = after


class Fetcher:
    """Downloads URLs for several threads.

    Args:
        rate: Maximum requests per second of all threads.
        connections: Maximum open connections.

    Raises:
        MissingExtraError: The extra `hub` is not installed.
    """

    def __init__(self, *, rate: float = 20, connections: int = 8) -> None:
        self._httpx = require("httpx2", "hub")
        self._tenacity = require("tenacity", "hub")
        self.connections = connections
        self._interval = 1 / rate
        self._lock = threading.Lock()
        self._next = 0.0
        self.stopping = threading.Event()
        from intclip.version import __version__

        self._client = self._httpx.Client(
            timeout=TIMEOUT,
            follow_redirects=True,
            headers={"User-Agent": f"intclip/{__version__} (dataset preparation)"},
            limits=self._httpx.Limits(max_connections=connections),
        )

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._client.close()

    def fetch(self, url: str, accept: tuple[str, ...] = ()) -> bytes:
        """Download the content of a URL.

        Args:
            url: http or https.
            accept: Prefixes of accepted content types, such as "image/"; empty for any.

        Raises:
            Gone: The URL does not exist.
            Failed: The download failed.
        """
        tenacity = self._tenacity
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_Again),
            sleep=self._sleep,
            reraise=True,
        )
        content: bytes = retrying(self._attempt, url, accept)
        return content

    def _wait(self, state: Any) -> float:
        jittered = self._tenacity.wait_exponential_jitter(initial=BACKOFF, jitter=BACKOFF, max=60)
        error = state.outcome.exception()
        return max(float(jittered(state)), float(error.after))

    def _sleep(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise Failed("interrupted")

    def _pace(self) -> None:
        """Wait for this request's turn under the rate limit."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval
        self._sleep(max(0.0, turn - time.monotonic()))

    def _attempt(self, url: str, accept: tuple[str, ...]) -> bytes:
        self._pace()
        deadline = time.monotonic() + 4 * TIMEOUT
        try:
            with self._client.stream("GET", url) as answer:
                self._judge(answer.status_code, answer.headers)
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind and accept and not kind.startswith(accept):
                    raise Failed(f"the server sent {kind}")
                pieces: list[bytes] = []
                size = 0
                for piece in answer.iter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_BYTES:
                        raise Failed(f"the response is larger than {MAX_BYTES >> 20} MB")
                    if time.monotonic() > deadline:
                        raise _Again("the response was too slow")
                    if self.stopping.is_set():
                        raise Failed("interrupted")
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
            raise _Again(f"no server answered ({reason(error)})", unreachable=True) from error
        except self._httpx.TimeoutException as error:
            raise _Again("the server did not respond in time") from error
        except (self._httpx.InvalidURL, self._httpx.UnsupportedProtocol, self._httpx.TooManyRedirects) as error:
            raise Failed(f"invalid URL ({reason(error)})") from error
        except self._httpx.HTTPError as error:
            raise _Again(f"the response was interrupted ({reason(error)})") from error
        if not size:
            raise _Again("the response was empty")
        return b"".join(pieces)

    def _judge(self, status: int, headers: Mapping[str, str]) -> None:
        if status in (404, 410):
            raise Gone(f"status {status}")
        if status in (408, 425, 429) or status >= 500:
            after = min(retry_after(headers.get("retry-after")), MAX_WAIT)
            if status in (429, 503):
                with self._lock:  # all threads wait, not only the one that got the response
                    self._next = max(self._next, time.monotonic() + after)
            raise _Again(f"status {status}", after=after)
        if status != 200:
            raise Failed(f"status {status}")


def retry_after(value: str | None) -> float:
    """Parse a Retry-After header (seconds or a date) to seconds; 0 if there is none."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
