"""Bounds what a client may send before its request is one: uvicorn bounds bodies' buffers, but no heads.

The class stands on the callbacks of httptools, which uvicorn's own protocol is made of; a test on real sockets fails
where a new release of it changes them.
"""

import asyncio
from typing import Any

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
        if self._unframed > MOST_BYTES and not self.transport.is_closing():
            self._cut(TOO_LARGE)
        elif self._in_head and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_S, self._cut, TOO_SLOW)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._unframed = False, 0
        self._stop_timer()
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
        super().on_message_complete()

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
