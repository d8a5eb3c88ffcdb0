"""Answers that are none: a connection reset, and a socket that stays open and silent."""

import asyncio
import os
import socket
import struct
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

TRANSPORT = "paper.transport"
"""Where the layer `Sockets` puts the connection into the scope."""
RESET_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER without patience: close sends RST


class ConnectionCut(ConnectionResetError):
    """In memory, where there is no socket: the connection was reset."""


class NoAnswer(TimeoutError):
    """In memory, where there is no socket: the answer never comes."""


class Sockets:
    """The outermost layer of the server: lets a fault reach the connection, which ASGI has no word for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope[TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        await self._app(scope, receive, send)


def reset(transport: asyncio.Transport) -> None:
    """Reset a TCP connection, so that the other side reads an error rather than an end."""
    known: Any = transport.get_extra_info("socket")
    if known is not None:
        with socket.socket(fileno=os.dup(known.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
    transport.abort()


async def until_gone(receive: Receive) -> None:
    """Wait for the other side to leave."""
    while (await receive())["type"] != "http.disconnect":
        continue


class ResetAnswer(Response):
    """Resets the connection instead of answering."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cut it."""
        transport: asyncio.Transport | None = scope.get(TRANSPORT)
        if transport is None:
            raise ConnectionCut("the connection was reset")
        reset(transport)
        await until_gone(receive)


class SilentAnswer(Response):
    """Never answers; ends when the caller leaves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait."""
        if scope.get(TRANSPORT) is None:
            raise NoAnswer("the answer never comes")
        await until_gone(receive)
