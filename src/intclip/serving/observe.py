"""Logs and metrics of the service; neither contains photos, their names or labels."""

import asyncio
import logging
import random
import sys
import time
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intclip.serving.batcher import Batcher

GONE = 499
"""Logged status for a client that disconnected early, as in nginx."""
LEVELS = ("debug", "info", "warning", "error")
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARED: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso"),
]


class Metrics:
    """Metrics of one service, in their own registry.

    Attributes:
        registry: Content of `/metrics`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("intclip_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "intclip_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram("intclip_batch_photos", "Photos per batch", buckets=_BATCHES, registry=self.registry)
        self.computing = Counter("intclip_compute_seconds", "Seconds of computing batches", registry=self.registry)
        self.failures = Counter("intclip_unreadable_photos", "Photos that could not be read", registry=self.registry)
        self.model_failures = Counter(
            "intclip_model_failures", "Photos that failed in the model", registry=self.registry
        )
        self._inside = Gauge("intclip_photos_inside", "Photos accepted and not yet answered", registry=self.registry)

    def watch(self, batcher: Batcher) -> None:
        """Read the queue's length on each scrape."""
        self._inside.set_function(lambda: batcher.inside)

    def on_batch(self, photos: int, seconds: float) -> None:
        """Count a batch; see `Batcher`."""
        self.batches.observe(photos)
        self.computing.inc(seconds)


class Observer:
    """Outermost ASGI middleware: one log line and metrics per request; a response to unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._log = make_log()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, request = time.perf_counter(), 0, f"{random.getrandbits(128):032x}"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marks = ((b"x-request-id", request.encode()), (b"x-content-type-options", b"nosniff"))
                message["headers"] = [*message.get("headers", ()), *marks]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            status = GONE
        except asyncio.CancelledError:  # at process end; uvicorn would print a traceback and answer 500
            if not status:
                stopped = JSONResponse({"detail": "the service was stopped; try again later"}, 503)
                await stopped(scope, receive, watched)
        except Exception:
            self._log.exception("failed", request=request)
            if status:
                raise
            answer = JSONResponse({"detail": f"internal error; see the log, request {request}"}, 500)
            await answer(scope, receive, watched)
        finally:
            # The route's pattern, not the path: every distinct path would create a time series.
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            facts = {"request": request, "method": scope["method"][:16], "route": route, "status": status}
            level = logging.DEBUG if route in ("/healthz", "/readyz", "/metrics") else logging.INFO
            self._log.log(level, "request", **facts, ms=round(1000 * seconds, 1))


def make_log() -> structlog.stdlib.BoundLogger:
    """Return the service's logger.

    It has its own processors, because structlog's default tracebacks print local
    variables, including photos.
    """
    log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("intclip.serving"),
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    ).bind()
    return log


def configure_logs(level: str = "info") -> None:
    """Send this process's logs to standard error: JSON lines, or plain columns on a terminal.

    Args:
        level: One of `LEVELS`; other libraries log only warnings.
    """
    terminal = sys.stderr.isatty()
    ends: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING")
    logging.getLogger("intclip").setLevel(level.upper())
