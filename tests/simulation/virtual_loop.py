"""An event loop whose clock stands still while something real is under way, and leaps when all that is left is waiting.

Postgres and threads take real time; sleeps, timeouts and the broker's latency take none. The loop knows what is real:
a socket that was written to and has not answered, and a call that runs in a thread.
"""

import asyncio
import selectors
import time
from asyncio import selector_events
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

PROCESS: ContextVar[object | None] = ContextVar("PROCESS", default=None)
"""Whose tasks these are: a process that dies takes all of its own with it."""

SETTLE_S = 0.0002
"""A real pause before the clock leaps, for the second half of an answer."""
LONGEST_ANSWER_S = 10.0
"""After so long without any event, what was asked is waiting for somebody who sleeps."""

_Transport: Any = vars(selector_events)["_SelectorSocketTransport"]


class WatchedTransport(_Transport):
    """A socket that says when an answer is awaited."""

    def write(self, data: Any) -> None:
        """Send, and await an answer."""
        self._loop.asked.add(self)
        super().write(data)  # pyright: ignore[reportUnknownMemberType] - asyncio's own, without types

    def _read_ready(self) -> None:
        self._loop.asked.discard(self)
        super()._read_ready()  # pyright: ignore[reportUnknownMemberType]

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        self._loop.asked.discard(self)
        super()._call_connection_lost(exc)  # pyright: ignore[reportUnknownMemberType]


class LeapingSelector(selectors.DefaultSelector):
    """Waits for real events only while something real is under way; otherwise the clock leaps instead."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Events, real ones first."""
        if timeout is not None and timeout <= 0:
            return super().select(0)
        until = time.monotonic() + LONGEST_ANSWER_S
        while self.loop.under_way and time.monotonic() < until:
            events = super().select(LONGEST_ANSWER_S)
            if events:
                return events
        if timeout is None:
            return self._wait_or_give_up()
        time.sleep(SETTLE_S)
        events = super().select(0)
        if not events:
            self.loop.leap(timeout)
        return events

    def _wait_or_give_up(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing is planned and nothing is under way: what comes now comes soon, or never."""
        events = super().select(LONGEST_ANSWER_S)
        if not events:
            waiting = [str(task) for task in asyncio.all_tasks(self.loop)]
            raise RuntimeError("nothing will ever happen again: " + "; ".join(waiting))
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. `time()` is virtual, in seconds from 0."""

    def __init__(self) -> None:
        self.asked: set[Any] = set()
        self._owners: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
        self._threads = 0
        self._now = 0.0
        selector = LeapingSelector()
        selector.loop = self
        super().__init__(selector)

    @property
    def under_way(self) -> bool:
        """Whether something real has not ended yet."""
        return bool(self.asked) or self._threads > 0

    def time(self) -> float:
        """The virtual clock, seconds."""
        return self._now

    def leap(self, seconds: float) -> None:
        """Let virtual time pass at once, also beyond what was planned within it."""
        self._now += seconds

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A task of the process that makes it."""
        context = named.get("context")
        owner = PROCESS.get() if context is None else context.get(PROCESS)
        task: asyncio.Task[Any] = super().create_task(coro, **named)
        if owner is not None:
            self._owners[task] = owner
        return task

    def tasks_of(self, process: object) -> list[asyncio.Task[Any]]:
        """The tasks of a process that have not ended."""
        return [task for task, owner in self._owners.items() if owner is process and not task.done()]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run in a thread, in real time."""
        self._threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _future: object) -> None:
        self._threads -= 1

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        return WatchedTransport(self, sock, protocol, waiter, extra, server)
