"""What is too frequent, or too urgent, for the queue: a step that comes round in this process, whatever else fails."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from prometheus_client import Counter

from libs.telemetry import bound_id, new_id
from services.jobs.queue import CONNECTION_FAILURES

LONGEST_PAUSE_S = 5.0

ROUNDS = Counter(
    "lexi_jobs_rounds_total", "Rounds of what comes round in each process, by how they ended.", ["round", "outcome"]
)

log = structlog.get_logger(__name__)


class Rounds:
    """Runs `step` every `seconds` until told to stop. Its failures are logged and counted, and end nothing.

    After a failure the pause doubles, up to `LONGEST_PAUSE_S` or the step's own pace where that is slower.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[object]], *, seconds: float) -> None:
        self._name = name
        self._step = step
        self._seconds = seconds
        self._trouble: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Go round until told to stop; the step under way is cancelled then, since none leaves anything half done."""
        going = asyncio.create_task(self._go_round())
        told = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({going, told}, return_when=asyncio.FIRST_COMPLETED)
            if going.done():
                going.result()
        finally:
            for task in (going, told):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(going, told, return_exceptions=True)

    async def _go_round(self) -> None:
        pause = self._seconds
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            with bound_id(new_id("round")):
                good = await self._once()
            pause = self._seconds if good else min(max(pause * 2, self._seconds), max(LONGEST_PAUSE_S, self._seconds))
            await asyncio.sleep(max(0.0, begun + pause - loop.time()))

    async def _once(self) -> bool:
        try:
            await self._step()
        except CONNECTION_FAILURES as error:
            self._fail(f"{type(error).__name__}: {error}".splitlines()[0])
            return False
        except Exception:
            log.exception("round_failed", round=self._name)
            ROUNDS.labels(self._name, "failed").inc()
            return False
        ROUNDS.labels(self._name, "done").inc()
        if self._trouble is not None:
            log.info("round_works_again", round=self._name)
        self._trouble = None
        return True

    def _fail(self, reason: str) -> None:
        """The same reason is logged once, not every second of an outage."""
        ROUNDS.labels(self._name, "away").inc()
        if reason != self._trouble:
            log.warning("round_could_not_run", round=self._name, reason=reason)
        self._trouble = reason
