"""One request and its answer on a connection: status and headers, chunks of body, close."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from time import monotonic
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from libs.upstreams.errors import BrokenStream

HIGH_WATER = 256 * 1024
"""Bytes waiting to be read at which the socket is stopped."""

Headers: TypeAlias = list[tuple[bytes, bytes]]


class Line(Protocol):
    """What an exchange needs of its connection."""

    def abort(self) -> None:
        """Close the socket now."""

    def resume(self) -> None:
        """Read on."""


class Overdue(Exception):
    """Nothing came by the time the caller named."""


class Exchange:
    """One request and its answer. Use as an async context manager: leaving it early closes the socket."""

    __slots__ = (
        "_body",
        "_buffered",
        "_connection",
        "_due",
        "_error",
        "_leaving",
        "_loop",
        "_timer",
        "_timer_at",
        "_waiter",
        "complete",
        "headers",
        "status",
    )

    def __init__(self, connection: Line, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop  # asking asyncio for it costs a system call each time
        self.status = 0
        self.headers: Headers = []
        self.complete = False
        self._connection: Line | None = connection
        self._body: deque[bytes] = deque()
        self._buffered = 0
        self._error: BrokenStream | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._leaving: asyncio.TimerHandle | None = None

    async def head(self, until: float | None = None) -> int:
        """Wait for status and headers; the status. Raises `Overdue` at `time.monotonic()` `until`, `BrokenStream`."""
        while not self.status:
            await self._wait(until)
        return self.status

    async def read(self, until: float | None = None) -> bytes:
        """What has come of the body since the last read, `b""` at its end. Raises `Overdue`, `BrokenStream`."""
        body = self._body
        while not body:
            if self.complete:
                return b""
            await self._wait(until)
        chunk = body.popleft() if len(body) == 1 else b"".join(body)
        body.clear()
        if self._buffered > HIGH_WATER and self._connection is not None:
            self._connection.resume()
        self._buffered = 0
        return chunk

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        return next((value for known, value in self.headers if known == name), None)

    def close(self) -> None:
        """Done with it. A body that has not ended takes its socket with it, at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self, within_s: float) -> None:
        """Done with an answer that said it is over. The end of its body is awaited in the background, so that the
        connection can be kept; where it does not come within that many seconds, the socket is closed.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            self._leaving = self._loop.call_later(within_s, connection.abort)

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def _wait(self, until: float | None) -> None:
        if self._error is not None:
            raise self._error
        if self._connection is None:
            raise BrokenStream("the exchange is closed")
        loop = self._loop
        self._waiter = loop.create_future()
        self._due = until
        # One timer serves many reads: it is set anew only for an earlier end, and looks again when it fires too early.
        if until is not None and (self._timer is None or self._timer_at > until):
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = loop.call_at(until, self._on_timer), until
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_timer(self) -> None:
        due, self._timer = self._due, None
        if self._waiter is None or due is None:
            return
        if due > monotonic():
            self._timer, self._timer_at = self._loop.call_at(due, self._on_timer), due
        elif not self._waiter.done():
            self._waiter.set_exception(Overdue())

    def take(self, data: bytes) -> int:
        """Called by the connection: a piece of the body; how much is waiting to be read."""
        self._body.append(data)
        self._buffered += len(data)
        return self._buffered

    def wake(self) -> None:
        """Called by the connection: something came."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def finish(self) -> None:
        """Called by the connection: the answer is whole, the connection belongs to the next."""
        self.complete = True
        self._let_go()

    def fail(self, error: BrokenStream) -> None:
        """Called by the connection: nothing more will come."""
        self._error = error
        self._let_go()

    def _let_go(self) -> None:
        self._connection = None
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        self.wake()
