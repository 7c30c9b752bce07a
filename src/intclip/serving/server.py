"""Run an API until somebody stops it: its socket, uvicorn, and an end that finishes what was taken."""

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from intclip.errors import IntclipError
from intclip.serving.observe import make_log


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet, so that a port in use is told before a model is loaded.

    Args:
        host: Name or address.
        port: 0 takes any that is free.

    Raises:
        IntclipError: The address is wrong, not of this machine, or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise IntclipError(f"no address {host!r}: {error}; use 127.0.0.1, or 0.0.0.0 for all networks") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = f"cannot serve at {host}:{port}: {error.strerror}"
        raise IntclipError(f"{reason}; choose another --port or --host") from error
    return bound


def address(bound: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, at whose second Ctrl-C no more requests are waited for; what was taken is computed and answered."""

    interrupted = False
    """Whether Ctrl-C ended it.

    uvicorn raises the signal again once it has ended, which does nothing in a program that was started in the
    background of a shell script: its SIGINT is ignored. Who needs to know asks here.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn goes without it then, and the queue would be closed when nobody can answer
            await self.lifespan.shutdown()
            await asyncio.sleep(0.1)  # the last answers are being written


def run(api: FastAPI, bound: socket.socket, *, connections: int, grace_seconds: float) -> bool:
    """Serve until SIGINT or SIGTERM, then answer what was taken and return whether it was SIGINT.

    Args:
        api: See `create_api`.
        bound: From `bind`; closed at the end.
        connections: Most connections at once; further ones get 503.
        grace_seconds: How long requests under way may take after the signal.
    """
    log = make_log()
    log.info("serving", url=address(bound), models=list(api.state.batcher.models))
    if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback and not api.state.guarded:
        log.warning("open", hint="other machines may ask without a key; set INTCLIP_API_KEY or --api-key-file")
    config = uvicorn.Config(
        api,
        http="h11",  # it bounds the size of a request's head; httptools, where that is installed, does not
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    server = Server(config)
    gc.collect()
    gc.freeze()  # what is loaded stays: walking through it again and again took a fifth of the event loop's time
    gc.set_threshold(2_000, 10, 10)  # with 200 requests under way the usual 700 took another seventh
    with contextlib.suppress(KeyboardInterrupt):  # how uvicorn hands Ctrl-C on after it has finished
        server.run(sockets=[bound])
    log.info("stopped")
    return server.interrupted
