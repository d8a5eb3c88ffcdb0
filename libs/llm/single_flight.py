"""The same question asked twice at once is asked once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Shares one run of `work` among everybody who asks for the same key while it lasts."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def under_way(self, key: str) -> bool:
        """Whether a call of `run` for this key would join another's."""
        return key in self._flights

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of `work`, begun by the first who asks.

        A caller who is cancelled leaves the others undisturbed; when the last one goes, the work is cancelled as well
        and whoever asks next begins anew. A failure is raised to everybody.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(work()))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()

    def _land(self, key: str, flight: "_Flight[T]") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # marks it as seen where nobody waits any more


class Wait:
    """The time a joined caller still has."""

    def __init__(self, clock: Callable[[], float], deadline: float) -> None:
        self._clock = clock
        self._deadline = deadline

    async def until_deadline(self, work: Awaitable[T]) -> T | None:
        """The outcome of `work`, or None when the deadline comes first."""
        guard = asyncio.timeout(max(0.0, self._deadline - self._clock()))
        try:
            async with guard:
                return await work
        except TimeoutError:
            if not guard.expired():
                raise
            return None
