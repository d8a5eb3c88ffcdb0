"""A thin HTTP/1.1 client to one origin, for answers that stream: open, status and headers, chunks of body, close.

A request goes out once. A pooled connection is looked at before use and dropped when the server closed it; what was
written is never written again, since the server may have read it. Closing an exchange before its end closes the socket
at once, and so frees the engine's slot.
"""

import asyncio
import select
import ssl
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

import httptools

from libs.upstreams.errors import BrokenStream, ConnectFailed
from libs.upstreams.exchange import HIGH_WATER, Exchange, Headers, Ticker

IDLE_S = 4.0
"""How long a connection is kept unused: below the 5 s after which vLLM's server closes it."""
MAX_HEADER_BYTES = 64 * 1024


class _Connection(asyncio.Protocol):
    """One socket and its parser; at most one exchange at a time."""

    def __init__(self, wire: "Wire", loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._headers: Headers = []
        self._header_bytes = 0
        self._until_close = False
        self._paused = False
        self.rested_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes, so this cannot be checked at run time.
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._wire.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._until_close and exc is None:
            exchange.finish()
        else:
            when = "in the middle of the answer" if exchange.status else "before an answer"
            exchange.fail(BrokenStream(f"the connection was closed {when}"))

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._exchange = None
            if exchange.complete:
                exchange.wake()  # what is wrong came after its end
            else:
                exchange.fail(BrokenStream(f"the answer is not HTTP: {error}"))
            self.abort()
        else:
            exchange.wake()

    def on_message_begin(self) -> None:
        """httptools: an answer begins. One that nobody asked for must not be taken for the next one's."""
        if self._exchange is None:
            raise ValueError("an answer without a request")
        self._headers = []
        self._header_bytes = 0
        self._until_close = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("headers too long")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """httptools: status and headers are whole; an interim answer (1xx) is passed over."""
        exchange, status = self._exchange, self._parser.get_status_code()
        if exchange is None or status < 200:
            return
        framed = any(name in {b"content-length", b"transfer-encoding"} for name, _ in self._headers)
        self._until_close = not framed and status not in {204, 304}
        exchange.headers = self._headers
        exchange.status = status

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body. A reader that lags stops the socket."""
        exchange = self._exchange
        if exchange is not None and exchange.status and exchange.take(body) > HIGH_WATER:
            self._pause()

    def on_message_complete(self) -> None:
        """httptools: the answer is whole."""
        exchange = self._exchange
        if exchange is None or not exchange.status:
            return
        self._exchange = None
        self.resume()
        exchange.finish()
        self._wire.release(self, reusable=not self._last and self._parser.should_keep_alive())

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def usable(self, *, look: bool) -> bool:
        """Whether a resting connection can carry a request. Looking at its socket tells of a close that the loop has
        not come round to yet: a readable one was closed, or speaks out of turn.
        """
        if self._transport is None or self._transport.is_closing():
            return False
        return not look or not self._poll.poll(0)

    @property
    def drained(self) -> bool:
        """Whether everything written has left this process."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def start(self, request: bytes, *, last: bool) -> Exchange:
        """Write a request; its exchange."""
        self._last = last
        exchange = self._exchange = Exchange(self, self._loop, self._wire.ticker)
        if self._transport is not None:
            self._transport.write(request)
        return exchange

    def abort(self) -> None:
        """Close the socket now. What is in flight is broken, and told so."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail(BrokenStream("the connection was closed on our side"))
        if self._transport is not None:
            self._transport.abort()


class Wire:
    """Connections to one origin (`http://host:port` or https), kept while they are fresh, newest used first."""

    def __init__(
        self,
        origin: str,
        *,
        headers: Mapping[str, str] | None = None,
        idle_s: float = IDLE_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(origin)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._fixed = b" HTTP/1.1\r\n" + encode_headers(
            {"host": parts.netloc, "user-agent": "lexi-gateway", **(headers or {})}
        )
        self._idle_s = idle_s
        self.ticker = Ticker()
        self._resting: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: str,
        target: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | bytes = b"",
        connect_s: float = 2.0,
        keep_alive: bool = True,
        announced: bool = False,
    ) -> Exchange:
        """Write one request on a fresh or rested connection. Raises `ConnectFailed` when there is no connection.

        Without `keep_alive` it is the connection's last one, whatever the server promises. `announced`: the server says
        so in the header of an answer when it will close after it, so that a connection that rested need not be looked
        at. `headers` may have been through `encode_headers` before.
        """
        connection = self._rested(look=not announced) or await self._connect(connect_s)
        head = f"{method} {target}".encode("ascii") + self._fixed
        head += headers if isinstance(headers, bytes) else encode_headers(headers)
        if body or method not in {"GET", "HEAD", "DELETE"}:
            head += b"content-length: %d\r\n" % len(body)
        if not keep_alive:
            head += b"connection: close\r\n"
        return connection.start(head + b"\r\n" + body, last=not keep_alive)

    async def _connect(self, connect_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, loop), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise ConnectFailed(f"no connection to {where} within {connect_s:g} s") from error
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"no connection to {where}: {error}") from error
        self._all.add(connection)
        return connection

    def _rested(self, *, look: bool) -> _Connection | None:
        """The connection that rested least, if it is fresh and still open."""
        now = monotonic()
        while self._resting:
            connection = self._resting.pop()
            if now - connection.rested_at < self._idle_s and connection.usable(look=look):
                return connection
            connection.abort()
        return None

    def release(self, connection: _Connection, *, reusable: bool) -> None:
        """Called by a connection whose answer is whole."""
        if not reusable or not connection.drained:
            connection.abort()
            return
        connection.rested_at = monotonic()
        self._resting.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        loop, self._sweeper = asyncio.get_running_loop(), None
        oldest_kept = monotonic() - self._idle_s
        while self._resting and self._resting[0].rested_at <= oldest_kept:
            self._resting.popleft().abort()
        if self._resting:
            self._sweeper = loop.call_at(self._resting[0].rested_at + self._idle_s, self._sweep)

    def forget(self, connection: _Connection) -> None:
        """Called by a connection whose socket is gone."""
        self._all.discard(connection)
        if connection in self._resting:
            self._resting.remove(connection)

    @property
    def open_connections(self) -> int:
        """How many sockets are open, resting ones included."""
        return len(self._all)

    def close(self) -> None:
        """Close every socket."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.ticker.close()
        self._resting.clear()
        for connection in tuple(self._all):
            connection.abort()


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Header lines. Raises `ValueError` for a name or value that would end its line."""
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if text.count("\n") != len(headers) or text.count("\r") != len(headers) or "\0" in text:
        raise ValueError("a header must not hold line ends")
    return text.encode("latin-1")
