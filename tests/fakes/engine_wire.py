"""The HTTP/1.1 side of the fake engine: parse a request, hand it on, notice at once when the caller goes away."""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools


@dataclass(slots=True)
class WireRequest:
    """One request as it came in."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytearray = field(default_factory=bytearray)


Handler = Callable[["Connection", WireRequest], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client's connection. A request still being handled when the client leaves is cancelled."""

    def __init__(self, handler: Handler, connections: "set[Connection]", keep_alive_s: float) -> None:
        self._handler = handler
        self._connections = connections
        self._keep_alive_s = keep_alive_s
        self._parser = httptools.HttpRequestParser(self)
        self._request = WireRequest()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._chunked = False
        self._writable = asyncio.Event()
        self._writable.set()
        self.requests = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._writable.set()
        self._connections.discard(self)
        if self._idle is not None:
            self._idle.cancel()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._idle is not None:
            self._idle.cancel()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.drop()

    def on_message_begin(self) -> None:
        self._request = WireRequest()

    def on_url(self, url: bytes) -> None:
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        self._request.method = self._parser.get_method().decode("latin-1")
        self.requests += 1
        self._task = asyncio.get_running_loop().create_task(self._serve(self._request))

    async def _serve(self, request: WireRequest) -> None:
        try:
            await self._handler(self, request)
        finally:
            self._task = None
        if request.headers.get("connection") == "close":
            self.finish()
        else:
            self._rest()

    def _rest(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(self._keep_alive_s, self.drop)

    def begin(
        self,
        status: int,
        *,
        content_type: str = "application/json",
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Write the status line and headers; without `length` the body is chunked."""
        self._chunked = length is None
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}"]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.write_raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def write(self, data: bytes) -> None:
        """Write a piece of the body, as one chunk where the body is chunked; nothing for an empty one."""
        if data:
            self.write_raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        """End a chunked body."""
        if self._chunked:
            self.write_raw(b"0\r\n\r\n")

    def answer(self, status: int, body: bytes, **more: str) -> None:
        """A whole answer with a known length; `more` are headers, underscores standing for dashes."""
        headers = {name.replace("_", "-"): value for name, value in more.items() if name != "content_type"}
        content_type = more.get("content_type", "application/json")
        self.begin(status, content_type=content_type, length=len(body), headers=headers)
        self.write_raw(body)

    def write_raw(self, data: bytes) -> None:
        """Write bytes as they are; a client that has left is no error here."""
        if self.transport is not None:
            self.transport.write(data)

    async def drain(self) -> None:
        """Wait while the client reads too slowly."""
        await self._writable.wait()

    def reset(self) -> None:
        """Close the connection with a TCP reset, as the kernel does for a killed process with unread data."""
        if self.transport is None:
            return
        handle = os.dup(self.transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=handle) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def drop(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def finish(self) -> None:
        """Close the connection after what was written has gone out."""
        if self.transport is not None:
            self.transport.close()
