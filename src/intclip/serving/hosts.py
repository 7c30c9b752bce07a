"""Which host names a service answers to: pages elsewhere must not reach it by a name that points at this machine."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(host: str, address: str, *, guarded: bool, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Host names that a service answers to; empty for all of them.

    A name that an attacker controls can point at 127.0.0.1 (DNS rebinding), and then a page under that name reads
    whatever a local service answers. On loopback without a key only local names are answered. A service for the
    network cannot know its names: it answers to all, unless some are given.

    Args:
        host: What the user asked to listen at.
        address: The numeric address that it became.
        guarded: Whether clients show a key.
        extra: Further names, as the user gave them.
    """
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if loopback and not guarded:
        return tuple(dict.fromkeys(name.lower() for name in (*LOCAL, address, host, *extra)))
    return tuple(name.lower() for name in extra)


class Hosts:
    """ASGI middleware that refuses requests and WebSockets whose Host header names another host.

    Args:
        app: What answers the others.
        names: Lower case, without a port; an IPv6 address without brackets.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] not in ("http", "websocket") or host_name(scope) in self._names:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            detail = "this service does not answer to that host name; start it with --allow-host NAME to add one"
            await JSONResponse({"detail": detail}, 421)(scope, receive, send)


def host_name(scope: Scope) -> str | None:
    """The one Host header without its port, in lower case; None where it is missing, doubled or malformed."""
    found = [value for name, value in scope["headers"] if name == b"host"]
    if len(found) != 1:
        return None
    try:
        parts = urlsplit(f"//{found[0].decode('ascii')}")
        _ = parts.port  # raises where it is none
    except ValueError:
        return None
    plain = parts.username is None and not (parts.path or parts.query or parts.fragment)
    return parts.hostname if plain else None
