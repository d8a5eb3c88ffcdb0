"""Collecting what workers made of an evaluation: their rows, as they come, into the file of whoever asked."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.evaluation.sharing.store import SharingError, Standing, rows_after, standing

LOOK_S = 0.5
LATELY_S = 8.0
"""How old the last sign of life of a worker at work is at most."""
AWAY = (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What may pass: all but what says that this is another database."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds without a row: when to say that nobody takes a shard, when to give up where workers only tell of trouble,
    and when where there is no sign of any.
    """

    taken_s: float = 10.0
    trouble_s: float = 60.0
    nobody_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Collected:
    """How collecting ended. `rows` came; `workers` took part. `stopped`: it was told to. `trouble`: why no more come;
    the workers keep the rest, and whoever resumes goes on where this ended.
    """

    rows: int
    workers: tuple[str, ...]
    stopped: bool
    trouble: str | None


async def collect(
    engine: AsyncEngine,
    plan: Plan,
    *,
    left: int,
    keep: Callable[[Row], Awaitable[None]],
    had: Container[int],
    seen: Callable[[Row], None],
    told: Callable[[str], None],
    stop: asyncio.Event,
    waits: Waits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Bring the rows of the `left` items that are missing, as workers make them, until all are here.

    `keep` returns when a row is safe, `seen` is told of it then; rows of items in `had` came before and are passed
    over. `told` gets what a person should read: who takes part, who cannot, that nobody does. Postgres may go away
    meanwhile. Raises `SharingError` where the evaluation has ended elsewhere, `ProgrammingError` where the database has
    other tables, and what `keep` raises.
    """
    collecting = _Collecting(
        plan=plan, left=left, keep=keep, had=had, seen=seen, told=told, waits=waits or Waits(), clock=clock
    )
    while collecting.left > 0 and collecting.trouble is None and not stop.is_set():
        try:
            async with engine.connect() as connection:
                await collecting.look(connection)
        except ProgrammingError:
            raise
        except AWAY as error:
            collecting.came_at = None  # nobody could show himself
            collecting.say(f"waiting for Postgres: {type(error).__name__}: {error}".splitlines()[0])
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S if collecting.left > 0 else 0):
                await stop.wait()
    stopped = collecting.left > 0 and collecting.trouble is None
    return Collected(collecting.rows, tuple(sorted(collecting.workers)), stopped, collecting.trouble)


@dataclass(slots=True)
class _Collecting:
    """The state of it."""

    plan: Plan
    left: int
    keep: Callable[[Row], Awaitable[None]]
    had: Container[int]
    seen: Callable[[Row], None]
    told: Callable[[str], None]
    waits: Waits
    clock: Callable[[], float]
    rows: int = 0
    workers: set[str] = field(default_factory=set[str])
    trouble: str | None = None
    after: int = 0
    came_at: float | None = None
    finished_before: bool = False
    said: set[str] = field(default_factory=set[str])

    def say(self, line: str) -> None:
        """Say something once."""
        if line not in self.said:
            self.said.add(line)
            self.told(line)

    async def look(self, connection: AsyncConnection) -> None:
        """Bring what came, and look how the work stands."""
        came = await self._bring(connection)
        if self.left <= 0:
            return
        now = await standing(connection, self.plan.evaluation_id, lately_s=LATELY_S)
        moment = self.clock()
        if came or self.came_at is None:
            self.came_at = moment
        self._tell(now)
        if not now.open:
            raise SharingError(
                f"the evaluation {self.plan.evaluation_id} was ended elsewhere; {self.left} of {self.plan.items} items "
                "have no row. Resume it to hand those to the workers again"
            )
        if now.finished == now.shards and self.finished_before and not came:
            raise SharingError(f"the workers have finished, but {self.left} items have no row; this is a defect")
        self.finished_before = now.finished == now.shards
        self._judge(now, silent_s=moment - self.came_at)

    async def _bring(self, connection: AsyncConnection) -> int:
        came = 0
        async for position, page in rows_after(connection, self.plan.evaluation_id, after=self.after):
            for row in page:
                self._join(row.worker)
            new = [row for row in page if row.item not in self.had]
            await asyncio.gather(*(self.keep(row) for row in new))
            for row in new:
                self.seen(row)
            self.after = position
            came += len(new)
            self.rows += len(new)
            self.left -= len(new)
        return came

    def _tell(self, now: Standing) -> None:
        for worker in now.workers:
            self._join(worker)
        for each in now.troubles:
            self.say(f"{each.worker}: {each.error}")

    def _join(self, worker: str) -> None:
        if worker not in self.workers:
            self.workers.add(worker)
            self.told(f"{worker} takes part")

    def _judge(self, now: Standing, *, silent_s: float) -> None:
        """Say that nobody works, and give up where waiting helps nobody."""
        if now.working:
            return
        if not now.taken and silent_s >= self.waits.taken_s:
            self.say(
                f"no worker has taken a shard within {self.waits.taken_s:.0f} s: each process of services.jobs on this "
                "database is one (make run starts one; more may run on any machine). It stays queued."
            )
        if now.troubles and silent_s >= self.waits.trouble_s:
            first = now.troubles[0]
            self.trouble = f"no worker can go on ({first.worker}: {first.error})"
        elif silent_s >= self.waits.nobody_s:
            self.trouble = f"no worker has shown itself for {silent_s / 60:.0f} minutes"
