"""Run an API: socket, uvicorn, and a graceful shutdown."""

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from intclip.errors import IntclipError, reason
from intclip.serving.observe import make_log


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket without listening, so that a port in use is reported before loading a model.

    Args:
        host: Name or address.
        port: 0 picks a free one.

    Raises:
        IntclipError: The address is invalid, not on this machine, or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise IntclipError(
            f"no address {host!r}: {reason(error)}; use 127.0.0.1, or 0.0.0.0 for all networks"
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise IntclipError(
            f"cannot serve at {host}:{port}: {reason(error)}; choose another --port or --host"
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn server that, on a second Ctrl-C, stops waiting for uploads but still answers accepted requests."""

    interrupted = False
    """Whether Ctrl-C ended it.

    uvicorn raises the signal again at its end, but a program
    started in the background of a shell script ignores SIGINT.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn skips it then, and the queue would close too early
            await self.lifespan.shutdown()
            await asyncio.sleep(0.1)  # the last responses are being written


def run(api: FastAPI, bound: socket.socket, *, connections: int, grace_seconds: float) -> bool:
    """Serve until SIGINT or SIGTERM, then finish accepted requests; return whether it was SIGINT.

    Args:
        api: See `create_api`.
        bound: From `bind`; closed at the end.
        connections: Maximum open connections; more get 503.
        grace_seconds: Maximum time for requests in progress after the signal.
    """
    log = make_log()
    bound.listen()  # clients that read the line below may connect at once; they wait until the API is ready
    log.info("serving", url=address(bound), models=list(api.state.batcher.models))
    if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback and not api.state.guarded:
        log.warning("open", hint="other machines have access without a key; set INTCLIP_API_KEY or --api-key-file")
    config = uvicorn.Config(
        api,
        http="h11",  # limits the size of a request's header; httptools does not
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    server = Server(config)
    gc.collect()
    gc.freeze()  # scanning permanent objects took a fifth of the event loop's time
    gc.set_threshold(2_000, 10, 10)  # with 200 requests under way the usual 700 took another seventh
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn re-raises Ctrl-C when it has finished
        server.run(sockets=[bound])
    log.info("stopped")
    return server.interrupted
