"""Allowed host names of a service, against DNS rebinding."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(host: str, address: str, *, guarded: bool, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the allowed host names of a service; empty for all.

    A host name controlled by an attacker can point to 127.0.0.1 (DNS rebinding), which lets a page
    under that name read a local service. On loopback without a key only local names are allowed. A network service
    cannot know its names, so all are allowed unless some are given.

    Args:
        host: Address given by the user.
        address: Its numeric address.
        guarded: Whether clients need a key.
        extra: More names given by the user.
    """
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if loopback and not guarded:
        return tuple(dict.fromkeys(name.lower() for name in (*LOCAL, address, host, *extra)))
    return tuple(name.lower() for name in extra)


class Hosts:
    """ASGI middleware that rejects requests and WebSockets with another host in their Host header.

    Args:
        app: The wrapped application.
        names: Allowed names, lower case, without port; IPv6 addresses without brackets.
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
            detail = "unknown host name; start the service with --allow-host NAME to allow it"
            await JSONResponse({"detail": detail}, 421)(scope, receive, send)


def host_name(scope: Scope) -> str | None:
    """Return the Host header without port, in lower case; None if missing, repeated or malformed."""
    found = [value for name, value in scope["headers"] if name == b"host"]
    if len(found) != 1:
        return None
    try:
        parts = urlsplit(f"//{found[0].decode('ascii')}")
        _ = parts.port  # raises if invalid
    except ValueError:
        return None
    plain = parts.username is None and not (parts.path or parts.query or parts.fragment)
    return parts.hostname if plain else None
