"""What a panic exit stands on besides the broker: a clock, a disk that may hang, and how patient it is."""

import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from libs.trading.entry_marks import MAY_STILL_ARRIVE_S

T = TypeVar("T")


class Clock(Protocol):
    """Time, passed in so that a simulation can turn it."""

    def now(self) -> datetime:
        """Wall time, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Disk(Protocol):
    """Where blocking work on files is done."""

    async def do(self, work: Callable[[], T]) -> T:
        """Do it and return what it gives. Raises what it raises, and `OSError` when the disk does not answer."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> datetime:
        """Wall time, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        import asyncio  # not at the top: the halt is written before asyncio is loaded

        await asyncio.sleep(seconds)


class InlineDisk:
    """Does the work at once, for whoever trusts the disk."""

    async def do(self, work: Callable[[], T]) -> T:
        """Do it here."""
        return work()


class ThreadDisk:
    """Does the work in one thread of its own, in order, so that a disk that hangs delays an exit by `limit_s` only."""

    def __init__(self, *, limit_s: float = 0.5) -> None:
        self._limit_s = limit_s
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._last: _Job | None = None
        threading.Thread(target=self._run, daemon=True, name="panic-disk").start()

    def wait(self, work: Callable[[], T]) -> T:
        """Do it, blocking for at most the limit.

        Raises `OSError` when it fails, however it does, and when the disk does not answer.
        """
        if self._last is not None and not self._last.done.is_set():
            raise OSError("the disk does not answer")
        job = self._last = _Job(work)
        self._jobs.put(job)
        if not job.done.wait(self._limit_s):
            raise OSError(f"the disk has not answered within {self._limit_s:g} s")
        if isinstance(job.error, OSError):
            raise job.error
        if job.error is not None:
            raise OSError(f"{type(job.error).__name__}: {job.error}") from job.error
        return job.value

    async def do(self, work: Callable[[], T]) -> T:
        """The same from a coroutine. It blocks the loop for the few milliseconds of a write, which nothing races."""
        return self.wait(work)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job.value = job.work()
            except Exception as error:  # noqa: BLE001 - raised again where the work was asked for
                job.error = error
            job.done.set()


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.value: Any = None
        self.error: Exception | None = None
        self.done = threading.Event()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a panic exit waits for what, in seconds.

    `overall_s` bounds the whole; `cancel_s` the wait for cancelled orders in a round, less after the first round;
    `fill_s` the wait for closing orders before they are cancelled and sent anew; `closed_s` how long an unchanged
    picture must stand before a closed market is believed; `grace_s` how long a round's outcome is looked for although
    the time is up; `entry_s` how long an entry can be on its way that nobody waits for any more; `apart_s` how far
    apart the last two reads are; `beat_s` how long the journal may be silent while the exit is at work.
    """

    overall_s: float = 120.0
    cancel_s: float = 5.0
    cancel_again_s: float = 2.0
    fill_s: float = 15.0
    closed_s: float = 2.0
    grace_s: float = 2.0
    entry_s: float = MAY_STILL_ARRIVE_S
    apart_s: float = 1.0
    beat_s: float = 1.0


class Pace:
    """Growing pauses between reads, so that the first answer is seen at once and no rate limit is met."""

    def __init__(self, clock: Clock, *, first_s: float = 0.05, most_s: float = 1.5) -> None:
        self._clock = clock
        self._next_s = first_s
        self._most_s = most_s

    async def rest(self) -> None:
        """Pause, longer each time."""
        pause, self._next_s = self._next_s, min(self._next_s * 1.6, self._most_s)
        await self._clock.sleep(pause)


class Voice:
    """Human lines on stderr, from a thread of its own: a pipe that nobody reads must not hold up an exit."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._run, daemon=True, name="panic-voice").start()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        self._idle.clear()
        self._lines.put(f"[{time.monotonic() - self._started:6.2f} s] {text}\n")

    def flush(self, within_s: float = 1.0) -> None:
        """Wait a moment for the lines to be out."""
        self._idle.wait(within_s)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                self._lines = queue.SimpleQueue()  # nobody listens any more
            if self._lines.empty():
                self._idle.set()
