"""The queue: PgQueuer on Postgres. Schedules or people put jobs into it, any process takes them out, each runs once.

A schedule fires in one process only, and its job is not queued again while one of its kind waits or runs. A job whose
process is gone is taken again by another once its lease has run out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from random import random
from typing import Any

import asyncpg
import structlog
from pgqueuer import PgQueuer
from pgqueuer.domain.errors import PgqException, RetryRequested
from pgqueuer.models import Job, Schedule
from prometheus_client import Counter, Histogram
from sqlalchemy.exc import SQLAlchemyError

from libs.telemetry import Origin, new_id

CONNECT_TIMEOUT_S = 5.0
LONGEST_PAUSE_S = 5.0
FIRST_PAUSE_S = 0.2
DRAIN_S = 5.0
CONNECTION_FAILURES = (
    OSError,
    TimeoutError,
    PgqException,
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)

RUNS = Counter("lexi_jobs_runs_total", "Jobs that ended, by how", ["job", "outcome"])
SECONDS = Histogram("lexi_jobs_seconds", "How long a job took", ["job"], buckets=(0.01, 0.1, 1, 10, 60, 600))

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Periodic:
    """A job that comes round: `cron` has five fields, or six where the sixth is seconds."""

    cron: str
    work: Work


@dataclass(frozen=True, slots=True)
class OnDemand:
    """A job that is queued with something to work on, its payload. Raise `GiveBack` to leave it to whoever is next."""

    work: Callable[[bytes], Awaitable[object]]


class GiveBack(RetryRequested):
    """Raised by a job that is to be done later, or by another process: it waits in the queue again, after `delay`."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a process takes jobs. It has at most `most` at a time (None: as many as there are) and takes `batch` at once.

    A job whose process showed no sign of life for `lease_s` is taken by another, which looks every `look_s`; while jobs
    wait that it has no hands for, every `hurry_s`. What ends or is queued wakes everybody at once.
    """

    batch: int = 4
    most: int | None = None
    lease_s: float = 30.0
    look_s: float = 10.0
    hurry_s: float = 0.1


class Queue:
    """Takes jobs from Postgres and runs them, over one connection of its own that is made again when it breaks."""

    def __init__(self, url: str, jobs: Mapping[str, Periodic | OnDemand], *, pace: Pace | None = None) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._jobs = jobs
        self._pace = pace or Pace()
        self._reason: str | None = "not connected yet"

    async def check(self) -> str | None:
        """Why no job is taken now, None when all is well."""
        return self._reason

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop; a job under way is finished first."""
        while not stop.is_set():
            await self.wait_for(lambda: self._session(stop), stop)

    async def wait_for(self, step: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Do a step that needs Postgres, again and again until it worked or we are told to stop."""
        pause = FIRST_PAUSE_S
        while not stop.is_set():
            try:
                await step()
                return
            except CONNECTION_FAILURES as error:
                self._reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("database_step_failed", error=self._reason, pause_s=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * (0.5 + random() / 2)):  # noqa: S311 - spreads retries, hides nothing
                    await stop.wait()
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _session(self, stop: asyncio.Event) -> None:
        """Work over one connection until it breaks or we are told to stop."""
        connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - untyped
        connection = await connect(
            self._url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=30,
            server_settings={"application_name": "lexi-jobs-queue", "timezone": "UTC", "jit": "off"},
        )
        try:
            queue = PgQueuer.from_asyncpg_connection(connection)

            def gone(_connection: object) -> None:
                queue.shutdown.set()

            connection.add_termination_listener(gone)
            self._register(queue)
            self._reason = None
            log.info("queue_connected", jobs=sorted(self._jobs))
            await self._work(queue, stop)
            if not stop.is_set():
                raise ConnectionError("the connection to Postgres ended")
        finally:
            await self._close(connection)

    async def _work(self, queue: PgQueuer, stop: asyncio.Event) -> None:
        running = asyncio.create_task(self._take(queue))
        told = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(queue.shutdown.wait())
        try:
            await asyncio.wait({running, told, ended}, return_when=asyncio.FIRST_COMPLETED)
            queue.shutdown.set()
            await asyncio.wait({running}, timeout=DRAIN_S)
            if running.done():
                await running
        finally:
            for task in (running, told, ended):
                task.cancel()
            await asyncio.gather(running, told, ended, return_exceptions=True)

    async def _take(self, queue: PgQueuer) -> None:
        """Run jobs until told to shut down. Without schedules none is looked for."""
        pace, scheduled = self._pace, any(isinstance(job, Periodic) for job in self._jobs.values())
        queue.qm.min_dequeue_poll_interval = timedelta(seconds=pace.hurry_s)
        run = queue.run if scheduled else queue.qm.run
        await run(
            dequeue_timeout=timedelta(seconds=pace.look_s),
            batch_size=pace.batch,
            max_concurrent_tasks=pace.most,
            shutdown_on_listener_failure=True,
            heartbeat_timeout=timedelta(seconds=pace.lease_s),
        )

    async def _close(self, connection: Any) -> None:
        try:
            await connection.close(timeout=2)
        except CONNECTION_FAILURES as error:
            log.info("queue_connection_was_gone", error=repr(error))

    def _register(self, queue: PgQueuer) -> None:
        for name, job in self._jobs.items():
            if isinstance(job, OnDemand):
                queue.entrypoint(name)(runner(name, job.work))
                continue
            queue.entrypoint(name, concurrency_limit=1)(runner(name, without_payload(job.work)))
            queue.schedule(f"enqueue_{name}", job.cron, clean_old=True)(enqueuer(name, queue))


def without_payload(work: Work) -> Callable[[bytes], Awaitable[object]]:
    """Work that comes round, as a job like any other."""
    return lambda _payload: work()


def runner(name: str, work: Callable[[bytes], Awaitable[object]]) -> Callable[[Job], Awaitable[None]]:
    """A job's work under an id of its own, with its outcome counted and told."""

    async def run(job: Job) -> None:
        with Origin(new_id("job")).span(f"job {name}"):
            await counted(job)

    async def counted(job: Job) -> None:
        begun = time.monotonic()
        outcome = "failed"
        try:
            await work(job.payload or b"")
            outcome = "done"
        except GiveBack:
            outcome = "given_back"
            raise
        finally:
            took_s = time.monotonic() - begun
            RUNS.labels(name, outcome).inc()
            SECONDS.labels(name).observe(took_s)
            log.info("job_ended", job=name, job_id=str(job.id), outcome=outcome, took_s=round(took_s, 3))

    return run


def enqueuer(name: str, queue: PgQueuer) -> Callable[[Schedule], Awaitable[None]]:
    """What a schedule does: queue its job, unless one waits or runs already."""

    async def enqueue(_schedule: Schedule) -> None:
        await queue.qm.queries.enqueue(name, None, dedupe_key=name, on_conflict="skip")

    return enqueue
