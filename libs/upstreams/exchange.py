"""One request and its answer on a connection: status and headers, chunks of body, close."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
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


TICK_S = 0.01
"""How often waits are looked through for those that are overdue: limits are kept to that grain."""


class Ticker:
    """Ends the waits of many exchanges when they are overdue, on one timer; a timer for each would cost more than the
    rest of an exchange together.
    """

    def __init__(self) -> None:
        self._waiting: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, exchange: "Exchange", loop: asyncio.AbstractEventLoop) -> None:
        """An exchange began to wait."""
        self._waiting.add(exchange)
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._look, loop)

    def forget(self, exchange: "Exchange") -> None:
        """It waits no more."""
        self._waiting.discard(exchange)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._timer = monotonic(), None
        for exchange in self._waiting:
            exchange.tick(now)
        if self._waiting:
            self._timer = loop.call_later(TICK_S, self._look, loop)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
        "_sink",
        "_ticker",
        "_waiter",
        "complete",
        "headers",
        "status",
    )

    def __init__(self, connection: Line, loop: asyncio.AbstractEventLoop, ticker: Ticker) -> None:
        self._loop = loop  # asking asyncio for it costs a system call each time
        self.status = 0
        self.headers: Headers = []
        self.complete = False
        self._connection: Line | None = connection
        self._body: deque[bytes] = deque()
        self._buffered = 0
        self._error: BrokenStream | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._due: float | None = None
        self._ticker = ticker
        self._leaving: asyncio.TimerHandle | None = None
        self._sink: Callable[[bytes], bool] | None = None

    async def head(self, until: float | None = None) -> int:
        """Wait for status and headers; the status. Raises `Overdue` at `time.monotonic()` `until`, `BrokenStream`."""
        while not self.status:
            await self._wait(until)
        return self.status

    async def read(self, until: float | None = None) -> bytes:
        """What has come of the body since the last read, `b""` at its end. Raises `Overdue`, `BrokenStream`."""
        while not self._body:
            if self.complete:
                return b""
            await self._wait(until)
        return self._came()

    async def pour(self, sink: Callable[[bytes], bool], until: float) -> bool:
        """Give what comes of the body to `sink`, in the pass of the loop in which it comes, until that returns False.
        True when the body ended before, and `sink` has had all of it. `postpone` moves `until`. Raises `Overdue`,
        `BrokenStream`, and what `sink` raises.

        For a stream of many small pieces this costs half of reading them one after the other, since nobody is woken.
        """
        self._sink = sink
        try:
            while True:
                if self._body and not sink(self._came()):
                    return False
                if self.complete:
                    return True
                if await self._wait(until):
                    return False
        finally:
            self._sink = None

    def postpone(self, until: float) -> None:
        """The wait under way ends at `time.monotonic()` `until`."""
        self._due = until

    def _came(self) -> bytes:
        body = self._body
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

    async def _wait(self, until: float | None) -> bool:
        """Wait for something to come; True when the sink has dealt with it and wants no more."""
        if self._error is not None:
            raise self._error
        if self._connection is None:
            raise BrokenStream("the exchange is closed")
        self._waiter = self._loop.create_future()
        self._due = until
        if until is not None:
            self._ticker.watch(self, self._loop)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            self._ticker.forget(self)

    def tick(self, now: float) -> None:
        """Called by the ticker: end a wait that is overdue."""
        waiter = self._waiter
        if waiter is not None and self._due is not None and self._due <= now and not waiter.done():
            waiter.set_exception(Overdue())

    def take(self, data: bytes) -> int:
        """Called by the connection: a piece of the body; how much is waiting to be read."""
        self._body.append(data)
        self._buffered += len(data)
        return self._buffered

    def wake(self) -> None:
        """Called by the connection: something came."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._sink is None or not self._body:
            waiter.set_result(False)
            return
        try:
            enough = not self._sink(self._came())
        except Exception as error:  # noqa: BLE001 - whoever waits is told, as if it had called the sink itself
            waiter.set_exception(error)
        else:
            if enough or self._connection is None:
                waiter.set_result(enough)

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
