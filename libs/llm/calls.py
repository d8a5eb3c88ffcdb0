"""The one recorder of model calls: bounded, batched, never in the caller's way.

Rows are made when a call is recorded and wait in a queue bounded in calls and in characters. One task writes what is
there in batches: soon when little happens, in larger ones under load, where a batch costs more than its rows. While
the database is away, batches go to the spool on disk and come back from it afterwards; what is stored already is not
stored twice, which makes every replay harmless. What is lost is counted: the oldest calls of an overfull queue or
spool, torn lines, and rows that the database refuses for their content. A `kill -9` of the process loses at most what
arrived within the last `GATHER_S + BUSY_GATHER_S` seconds.
"""

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import Literal

import asyncpg
import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.call_record import BodyRow, CallRecord, CallRow, Kept, kept_of, line_of, rows_of
from libs.llm.call_store import CallStore, is_refused
from libs.llm.spool import DEFAULT_CAP_BYTES, Spool, read_segment

log = structlog.get_logger(__name__)

QUEUE_LIMIT = 20_000
QUEUE_CHARACTERS = 64 * 1024 * 1024
"""How much text of prompts and replies may wait."""
BATCH = 1_000
BATCH_CHARACTERS = 4 * 1024 * 1024
REPLAY_BATCH = 200
GATHER_S = 0.1
BUSY = 25
"""So many calls within `GATHER_S` are a load: the next ones are waited for."""
BUSY_GATHER_S = 0.4
WRITE_TIMEOUT_S = 5.0
REST_S = 1.0
CLOSE_S = 5.0

TROUBLE = (
    SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError, TypeError,
    OverflowError,
)  # fmt: skip

records_total = Counter("lexi_llm_records_total", "Model calls by what became of their record", ["outcome"])
records_queued = Gauge("lexi_llm_records_queued", "Model calls waiting to be written")


class Recorder:
    """Keeps every model call of one process. Use it from the event loop it was started in."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        service: str,
        state_dir: Path,
        queue_limit: int = QUEUE_LIMIT,
        spool_bytes: int = DEFAULT_CAP_BYTES,
        rest_s: float = REST_S,
    ) -> None:
        self.service = service
        self._store = CallStore(engine)
        self._spool = Spool(state_dir / "spool", service, cap_bytes=spool_bytes)
        self._queue: deque[Kept] = deque()
        self._queue_limit = queue_limit
        self._characters = 0
        self._rest_s = rest_s
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = False
        self._away = False
        self._retry_at = 0.0
        self._came = self._ended = 0
        self._task: asyncio.Task[None] | None = None

    def record(self, call: CallRecord) -> None:
        """Take a call of the house's own to be kept, with its bodies. Never blocks, never raises."""
        try:
            kept = rows_of(call, self.service)
        except Exception:
            records_total.labels("refused").inc()
            log.exception("call_not_recordable", id=str(call.id))
            return
        self.keep(kept.call, kept.body)

    def keep(self, call: CallRow, body: BodyRow | None = None) -> None:
        """Take the rows of a call. Never blocks, never raises; the oldest waiting calls go when the queue is full."""
        queue = self._queue
        queue.append(Kept(call, body))
        self._came += 1
        if body is not None:
            self._characters += body.size
        while len(queue) > self._queue_limit or (self._characters > QUEUE_CHARACTERS and len(queue) > 1):
            self._next()
            self._ended += 1
            records_total.labels("dropped").inc()
        self._wake.set()
        if len(queue) >= BATCH:
            self._hurry.set()

    async def start(self) -> None:
        """Begin to write; what an earlier process left in the spool goes first."""
        queue = self._queue
        records_queued.set_function(lambda: len(queue))
        self._task = asyncio.create_task(self._run(), name="llm-recorder")
        self._task.add_done_callback(_report_death)

    async def close(self) -> None:
        """Write what waits, to the spool if the database does not take it, and stop."""
        self._closing = True
        self._wake.set()
        self._hurry.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._task
        except TimeoutError:
            log.warning("recorder_closed_slowly", timeout_s=CLOSE_S)
        finally:
            while self._queue:
                rows = self._take()
                await self._to_spool(rows)
                self._ended += len(rows)

    async def flush(self) -> None:
        """Return when everything recorded so far is written or spooled, whatever comes meanwhile."""
        until = self._came
        while self._ended < until:
            self._wake.set()
            self._hurry.set()
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        await self._replay()
        while not self._closing or self._queue:
            await self._wait()
            rows = self._take()
            try:
                await self._keep(rows)
            finally:
                self._ended += len(rows)

    async def _wait(self) -> None:
        """Until there is something to write, or, while lines wait in the spool, until it is time to try again."""
        if self._closing:
            return
        if not self._queue:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._rest_s if self._away else None):
                    await self._wake.wait()
            except TimeoutError:
                return
        self._hurry.clear()
        await self._gather(GATHER_S)
        if len(self._queue) >= BUSY:
            await self._gather(BUSY_GATHER_S)

    async def _gather(self, seconds: float) -> None:
        """Let calls come together for a batch, unless it is full or somebody waits."""
        if len(self._queue) >= BATCH or self._hurry.is_set() or self._closing:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _next(self) -> Kept:
        kept = self._queue.popleft()
        if kept.body is not None:
            self._characters -= kept.body.size
        return kept

    def _take(self) -> list[Kept]:
        """The next batch, oldest first."""
        taken: list[Kept] = []
        least = self._characters - BATCH_CHARACTERS
        while self._queue and len(taken) < BATCH and (self._characters > least or not taken):
            taken.append(self._next())
        return taken

    async def _keep(self, rows: list[Kept]) -> None:
        """Write rows, or spool them; after a success, bring back what the spool holds.

        After a failure the database is left alone for a while: one that hangs must not hold up every batch.
        """
        if time.monotonic() < self._retry_at:
            await self._to_spool(rows)
        elif (not rows or await self._write_or_spool(rows)) and self._away:
            await self._replay()

    async def _write_or_spool(self, rows: list[Kept]) -> bool:
        """Write fresh rows; False when they went to the spool instead, as they do when the recorder is cut short."""
        try:
            written = await self._write(rows, outcome="written")
        except asyncio.CancelledError:
            await self._to_spool(rows)
            raise
        if not written:
            await self._to_spool(rows)
        return written

    async def _replay(self) -> None:
        """Write the spooled rows, oldest first, and stop at the first failure: its segment is tried again later."""
        try:
            for segment in await asyncio.to_thread(self._spool.seal):
                if not await self._replay_segment(segment):
                    self._away = True
                    return
                await asyncio.to_thread(self._spool.delete, segment)
        except OSError as error:
            log.exception("spool_not_readable", error=str(error))
        self._away = False

    async def _replay_segment(self, segment: Path) -> bool:
        groups = read_segment(segment, size=REPLAY_BATCH)
        while (group := await asyncio.to_thread(next, groups, None)) is not None:
            lines, torn = group
            rows = [kept_of(columns) for columns in lines]
            if torn:
                records_total.labels("torn").inc(torn)
                log.warning("spool_lines_torn", count=torn)
            if rows and not await self._write(rows, outcome="replayed"):
                return False
            # A long spool must not make the queue overflow.
            if len(self._queue) >= BATCH and not await self._write_fresh():
                return False
        return True

    async def _write_fresh(self) -> bool:
        rows = self._take()
        try:
            return await self._write_or_spool(rows)
        finally:
            self._ended += len(rows)

    async def _to_spool(self, rows: list[Kept]) -> None:
        if not rows:
            return
        self._away = True
        try:
            lost = await asyncio.to_thread(self._spool.append, [line_of(row) for row in rows])
        except OSError as error:
            records_total.labels("dropped").inc(len(rows))
            log.exception("spool_not_writable", error=str(error), lost=len(rows))
            return
        records_total.labels("spooled").inc(len(rows))
        if lost:
            records_total.labels("dropped").inc(lost)
            log.warning("spool_full", lost=lost)

    async def _write(self, rows: list[Kept], *, outcome: Literal["written", "replayed"]) -> bool:
        """Insert rows; False when the database is away. A row that it refuses for its content is dropped alone."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._store.insert(rows, again=outcome == "replayed")
        except TROUBLE as error:
            if not is_refused(error):
                self._retry_at = time.monotonic() + self._rest_s
                log.warning("calls_not_written", error=type(error).__name__, rows=len(rows))
                return False
        else:
            records_total.labels(outcome).inc(len(rows))
            return True
        if len(rows) == 1:
            records_total.labels("refused").inc()
            log.error("call_refused_by_database", id=str(rows[0].call.id))
            return True
        middle = len(rows) // 2
        return await self._write(rows[:middle], outcome=outcome) and await self._write(rows[middle:], outcome=outcome)


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("recorder_died", exc_info=error)
