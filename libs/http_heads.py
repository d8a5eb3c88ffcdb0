"""Bounds what a client may send before its request is one: uvicorn bounds bodies' buffers, but no heads.

It also serves requests that offer another protocol than websockets as if they offered none, which is what HTTP asks of
who does not speak it. Java's client offers h2c with every request, and the parser takes the body for that protocol's.

The class stands on the callbacks of httptools, which uvicorn's own protocol is made of; a test on real sockets fails
where a new release of it changes them.
"""

import asyncio
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 65_536
"""Bytes of a head, or of anything else that is no body, after which the connection is cut."""
HEAD_S = 20.0
"""Seconds within which the head of a request must be whole, once its first piece came or the connection was made."""
_REST = b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large" + _REST
TOO_SLOW = b"HTTP/1.1 408 Request Timeout" + _REST


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, for connections that must get to the point."""

    _unframed = 0
    _in_head = True
    _timer: asyncio.TimerHandle | None = None
    _declined = False
    _again: tuple[bytes, int] | None = None
    """The head without the offer that was declined, and where in what came the rest begins."""

    def connection_made(self, transport: Any) -> None:
        """A connection begins."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_S, self._cut, TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came. What the parser does not hand on as a body lies in memory, and is counted."""
        self._unframed += len(data)
        super().data_received(data)
        if self._again is not None:
            self._read_again(data)
        if self._unframed > MOST_BYTES and not self.transport.is_closing():
            self._cut(TOO_LARGE)
        elif self._in_head and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_S, self._cut, TOO_SLOW)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head, self._declined = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._unframed = False, 0
        self._stop_timer()
        self._declined = self.parser.should_upgrade() and not self._should_upgrade() and self._offers()
        if not self._declined:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which the app bounds."""
        self._unframed = max(0, self._unframed - len(body))
        super().on_body(body)

    def on_chunk_complete(self) -> None:
        """The end of a chunk: what framed it is forgotten."""
        self._unframed = 0

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._unframed = 0
        if not self._declined:
            super().on_message_complete()

    def _offers(self) -> bool:
        """Whether there is a header Upgrade. CONNECT, which is refused further on, leaves the protocol without one."""
        return any(name == b"upgrade" for name, _ in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """The parser stopped behind a head whose offer we do not take: here uvicorn would go on, without the body."""
        stopped = sys.exception()
        if not self._declined or not isinstance(stopped, httptools.HttpParserUpgrade):
            super()._unsupported_upgrade_warning()
            return
        lines = [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
        first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        self._again = b"\r\n".join([first, *lines, b"", b""]), stopped.args[0]

    def _read_again(self, data: bytes) -> None:
        """Read heads once more as if they had offered nothing, each with what came behind it."""
        rest = memoryview(data)
        while self._again is not None:
            (head, begins), self._again = self._again, None
            rest = rest[begins:]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            super().data_received(head)
            if not self.transport.is_closing():
                super().data_received(rest)  # pyright: ignore[reportArgumentType] - the parser takes any buffer

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self, answer: bytes) -> None:
        """Refuse what is coming in; an answer that is under way is not mixed with a refusal."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if cycle is None or cycle.response_complete:
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()
