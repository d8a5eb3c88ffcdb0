"""Waiting for a database that is away: the same step again, with growing pauses, until it works or we must stop."""

import asyncio
from collections.abc import Awaitable, Callable
from random import random
from typing import TypeVar

import asyncpg
import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

# asyncpg raises its own errors while connecting; SQLAlchemy wraps them only once connected.
DATABASE_FAILURES = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

WAITING = Gauge("lexi_forecast_database_waiting", "1 while the forecast loop waits for the database")
RETRIES = Counter("lexi_forecast_database_retries_total", "Database steps of the forecast loop that had to be repeated")

log = structlog.get_logger(__name__)
T = TypeVar("T")


class StopError(Exception):
    """The process was told to stop while a step was waiting for the database."""


async def wait_for(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep, but wake up when told to stop; True when told."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True


class Patience:
    """Repeats database steps until they work. `reason` says what is being waited for, None when nothing is."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.reason: str | None = None

    async def until_done(self, step: Callable[[], Awaitable[T]], what: str) -> T:
        """The step's result. Raises `StopError` when the process must end first; the step was then not done."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                result = await step()
            except DATABASE_FAILURES as error:
                self.reason = f"waiting to {what}: {type(error).__name__}: {error}".splitlines()[0]
                WAITING.set(1)
                RETRIES.inc()
                log.warning("database_step_failed", step=what, error=self.reason, pause_s=pause)
            else:
                if self.reason is not None:
                    log.info("database_is_back", step=what)
                self.reason = None
                WAITING.set(0)
                return result
            if await wait_for(self._stop, pause * (0.5 + random() / 2)):  # noqa: S311 - spreads retries, hides nothing
                raise StopError(what)
            pause = min(pause * 2, LONGEST_PAUSE_S)
