"""A stream from an engine to a client, event by event.

Events go out in the pass of the loop in which they came, without waking a task for each: for a stream of short tokens
that would cost as much as looking at them. The task sleeps until the stream is over, or until the client is too slow.
"""

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any

from libs.upstreams.exchange import Exchange
from libs.upstreams.roads import TAIL_S
from libs.upstreams.visit import Visit
from services.api.dataplane.call import Call
from services.api.dataplane.stream import EventStream


class Relay:
    """One stream under way."""

    def __init__(self, call: Call, visit: Visit, exchange: Exchange, events: EventStream) -> None:
        self._call = call
        self._visit = visit
        self._exchange = exchange
        self._events = events
        self._held = b""
        self._sending: Coroutine[Any, Any, None] | None = None
        self._until_writable: asyncio.Future[None] | None = None
        self._busy_s = 0.0

    async def run(self) -> bytes:
        """Pass events on until the answer is over. The last ones are given back, for when the slot is free again.

        Raises what broke the stream, `Overdue` among it.
        """
        outlet, events = self._call.outlet, self._events
        while True:
            if await self._pour():
                events.ended()
            if events.done:
                self._exchange.leave(TAIL_S)
                return self._held
            if self._sending is not None:
                await self._drain()
            elif self._held and (outlet.status or events.error is None):
                # The first events: a stream that breaks before any went out is answered with an honest status.
                if not outlet.status:
                    await outlet.begin(*self._call.described())
                if not self._send(self._held):
                    await self._drain()
                self._held = b""
            if events.error is not None:
                raise events.error

    async def _pour(self) -> bool:
        """Sleep while `_take` does the work; whether the body ended. What is not spent in there is waiting for the
        engine.
        """
        clock, before = self._call.clock, monotonic()
        self._busy_s = 0.0
        try:
            return await self._exchange.pour(self._take, clock.due)
        finally:
            clock.waited_s += max(0.0, monotonic() - before - self._busy_s)

    def _take(self, chunk: bytes) -> bool:
        """Deal with what came; False where the task must go on."""
        call, events, now = self._call, self._events, monotonic()
        passed = events.feed(chunk)
        if passed:
            self._visit.moved(now)
            self._exchange.postpone(call.clock.due)
            if call.flight is not None and not events.done:
                call.flight.carry(passed)
        if events.done or events.error is not None or not call.outlet.streaming:
            self._held = passed
            return False
        if passed and not self._send(passed):
            return False
        self._busy_s += monotonic() - now
        return True

    def _send(self, passed: bytes) -> bool:
        """Send without waiting; whether the client took it."""
        self._sending = self._call.outlet.piece(passed)
        try:
            self._until_writable = self._sending.send(None)
        except StopIteration:
            self._sending = None
        return self._sending is None

    async def _drain(self) -> None:
        """Wait until a slow client has taken what it was sent, as long as it takes some now and then."""
        guard, clock = self._call.guard, self._call.clock
        if self._call.flight is not None:
            self._call.flight.land(None)  # others shall not wait for this client
        guard.client_must_take(monotonic())
        while self._sending is not None:
            if self._until_writable is not None:
                await asyncio.wait((self._until_writable,))  # it belongs to what is sent, so it is not awaited itself
            try:
                self._until_writable = self._sending.send(None)
            except StopIteration:
                self._sending = None
        guard.client_took()
        clock.moved(monotonic())  # the engine was not listened to meanwhile: it has its time again
