"""Ends the work for a client that left, or for one whose time is up while it is its own slowness that we wait for."""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Literal, TypeAlias, cast

from starlette.types import Message, Receive

LOOK_S = 0.02
"""How often work under way is looked through: for what is overdue because of a slow client (waiting for engines has its
own timers), and for what takes long enough that its client may leave meanwhile.
"""
STALL_S = 30.0
"""How long a client may take no byte of a stream while it holds a slot."""
SLACK_S = 0.25
"""How much later than a call's own total the guard's is, so that an engine's slowness is not taken for the client's."""

Ending: TypeAlias = Literal["left", "overdue"]


class Guard:
    """Watches over one request: cancels its task and remembers why in `ending`."""

    __slots__ = ("_due", "_future", "_loop", "_receive", "_task", "_total_due", "_waiting", "ending")

    def __init__(self, total_due: float, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._total_due = total_due + SLACK_S
        self.ending: Ending | None = None
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self._receive: Receive | None = None
        self._waiting: Coroutine[Any, Any, Message] | None = None
        self._future: asyncio.Future[Any] | None = None

    def watch(self, receive: Receive) -> None:
        """From now on the client's leaving ends the work, within `LOOK_S`. The body must have been read."""
        self._receive = receive

    def client_must_take(self, now: float) -> None:
        """From `now` on it is the client that is waited for, and not for long."""
        self._due = min(now + STALL_S, self._total_due)

    def client_took(self) -> None:
        """It took what it was sent."""
        self._due = self._total_due

    @property
    def client_stalls(self) -> bool:
        """Whether it is the client that is waited for."""
        return self._due < self._total_due

    def look(self, now: float) -> None:
        """See whether the work is overdue, and begin to wait for the client's leaving where that has not begun."""
        if self._due <= now:
            self.end("overdue")
        elif self._receive is not None and self._waiting is None:
            self._await_message(self._receive)

    def _await_message(self, receive: Receive) -> None:
        """The waiting coroutine is moved on by callbacks of what it waits for. A task of its own would do the same and
        cost as much as all the checks of a request.
        """
        self._waiting = cast("Coroutine[Any, Any, Message]", receive())
        self._move()

    def _move(self, _: object = None) -> None:
        """One step of waiting for the client's next message."""
        self._future = None
        if self._waiting is None:
            return
        try:
            future: asyncio.Future[Any] | None = self._waiting.send(None)
        except StopIteration as end:
            self._waiting = None  # any other message than this one: the next look waits for the next
            if end.value["type"] == "http.disconnect":
                self.end("left")
        else:
            if future is None:
                self._loop.call_soon(self._move)
            else:
                self._future = future
                future.add_done_callback(self._move)

    async def leave(self) -> None:
        """The client left: ends the running task here and now."""
        self.end("left")
        await asyncio.sleep(0)

    def end(self, why: Ending) -> None:
        """Cancel the work, once."""
        task, self._task = self._task, None
        if task is not None:
            self.ending = why
            task.cancel()

    def release(self) -> None:
        """The work is done; nothing ends it any more."""
        self._task = None
        self.unwatch()

    def unwatch(self) -> None:
        """The answer is whole and about to be out: from here the server calls every client gone."""
        waiting, self._waiting, self._receive = self._waiting, None, None
        if self._future is not None:
            self._future.remove_done_callback(self._move)
            self._future = None
        if waiting is not None:
            waiting.close()


class Guards:
    """All guards of the process, and one timer for them all."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._guards: set[Guard] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def over(self, total_due: float) -> Guard:
        """A guard over the running task until it is released with `release`."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # each asking costs a system call
        guard = Guard(total_due, self._loop)
        self._guards.add(guard)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)
        return guard

    def release(self, guard: Guard) -> None:
        """The guarded work is done."""
        self._guards.discard(guard)
        guard.release()

    def _look(self) -> None:
        now, self._timer = self._clock(), None
        for guard in self._guards:
            guard.look(now)
        if self._guards and self._loop is not None:
            self._timer = self._loop.call_later(LOOK_S, self._look)
