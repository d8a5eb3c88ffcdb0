"""The one recorder of model calls: bounded, batched, never in the caller's way.

`record()` puts a call into a bounded queue. One task writes what is there in batches, two statements each. While the
database is away, batches go to the spool on disk and come back from it afterwards; `on conflict do nothing` makes
every replay harmless. What is lost is counted: the oldest calls of an overfull queue or spool, torn lines, and rows
that the database refuses for their content. A `kill -9` of the process loses at most what arrived within the last
`GATHER_S` seconds.
"""

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import text
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.llm.call_record import CallRecord, row_of
from libs.llm.spool import DEFAULT_CAP_BYTES, Spool, read_segment

log = structlog.get_logger(__name__)

QUEUE_LIMIT = 5_000
BATCH = 200
GATHER_S = 0.1
WRITE_TIMEOUT_S = 5.0
REST_S = 1.0
CLOSE_S = 5.0
NO_PARTITION = "23514"

records_total = Counter("lexi_llm_records_total", "Model calls by what became of their record", ["outcome"])
records_queued = Gauge("lexi_llm_records_queued", "Model calls waiting to be written")

_CALL_COLUMNS = {
    "ts": "timestamptz", "id": "uuid", "service": "text", "prompt_key": "text", "prompt_version": "text",
    "prompt_hash": "text", "arm": "text", "upstream": "text", "model": "text", "subject": "text", "success": "boolean",
    "status": "text", "error": "text", "cached": "boolean", "attempts": "smallint", "repaired": "boolean",
    "retry_of": "uuid", "queue_ms": "real", "connect_ms": "real", "first_token_ms": "real", "total_ms": "real",
    "tokens_in": "integer", "tokens_out": "integer", "finish_reason": "text",
}  # fmt: skip
_BODY_COLUMNS = {
    "ts": "timestamptz", "id": "uuid", "messages": "jsonb", "sampling": "jsonb", "inputs": "jsonb", "reply": "text"
}  # fmt: skip


def _insert(table: str, columns: dict[str, str]) -> str:
    """An insert of many rows from one array per column. Documents travel as text and are cast row by row."""
    arrays = ", ".join(f"cast(:{name} as {'text' if kind == 'jsonb' else kind}[])" for name, kind in columns.items())
    taken = ", ".join(f"{name}::jsonb" if kind == "jsonb" else name for name, kind in columns.items())
    return (
        f"insert into {table} ({', '.join(columns)}) select {taken} "
        f"from unnest({arrays}) as given({', '.join(columns)}) on conflict do nothing"
    )


INSERT_CALLS = text(_insert("llm_calls", _CALL_COLUMNS))
INSERT_BODIES = text(_insert("llm_bodies", _BODY_COLUMNS))
ENSURE_PARTITIONS = text(
    "select ensure_partition('llm_calls', 'day', cast(:moment as timestamptz)), "
    "ensure_partition('llm_bodies', 'day', cast(:moment as timestamptz))"
)

Row = dict[str, Any]


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
        self._engine = engine
        self._service = service
        self._spool = Spool(state_dir / "spool", service, cap_bytes=spool_bytes)
        self._queue: deque[CallRecord] = deque()
        self._queue_limit = queue_limit
        self._rest_s = rest_s
        self._wake = asyncio.Event()
        self._closing = False
        self._away = False
        self._retry_at = 0.0
        self._days: set[str] = set()
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    def record(self, call: CallRecord) -> None:
        """Take a call to be kept. Never blocks, never raises; the oldest waiting call goes when the queue is full."""
        if len(self._queue) >= self._queue_limit:
            self._queue.popleft()
            records_total.labels("dropped").inc()
        self._queue.append(call)
        self._wake.set()

    async def start(self) -> None:
        """Begin to write; what an earlier process left in the spool goes first."""
        self._task = asyncio.create_task(self._run(), name="llm-recorder")
        self._task.add_done_callback(_report_death)

    async def close(self) -> None:
        """Write what waits, to the spool if the database does not take it, and stop."""
        self._closing = True
        self._wake.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._task
        except TimeoutError:
            log.warning("recorder_closed_slowly", timeout_s=CLOSE_S)
        finally:
            await self._to_spool([row_of(call, self._service) for call in self._take(len(self._queue))])

    async def flush(self) -> None:
        """Return when everything recorded so far is written or spooled."""
        while self._queue or self._busy:
            self._wake.set()
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        await self._replay()
        while not self._closing or self._queue:
            await self._wait()
            rows = [row_of(call, self._service) for call in self._take(BATCH)]
            self._busy = bool(rows)
            try:
                await self._keep(rows)
            finally:
                self._busy = False

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
        if len(self._queue) < BATCH and not self._closing:
            await asyncio.sleep(GATHER_S)

    def _take(self, most: int) -> list[CallRecord]:
        taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        records_queued.set(len(self._queue))
        return taken

    async def _keep(self, rows: list[Row]) -> None:
        """Write rows, or spool them; after a success, bring back what the spool holds.

        After a failure the database is left alone for a while: one that hangs must not hold up every batch.
        """
        if time.monotonic() < self._retry_at:
            await self._to_spool(rows)
        elif (not rows or await self._write_or_spool(rows)) and self._away:
            await self._replay()

    async def _write_or_spool(self, rows: list[Row]) -> bool:
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
        groups = read_segment(segment, size=BATCH)
        while (group := await asyncio.to_thread(next, groups, None)) is not None:
            rows, torn = group
            if torn:
                records_total.labels("torn").inc(torn)
                log.warning("spool_lines_torn", count=torn)
            if rows and not await self._write(rows, outcome="replayed"):
                return False
            if len(self._queue) >= BATCH:  # a long spool must not make the queue overflow
                fresh = [row_of(call, self._service) for call in self._take(BATCH)]
                if not await self._write_or_spool(fresh):
                    return False
        return True

    async def _to_spool(self, rows: list[Row]) -> None:
        if not rows:
            return
        self._away = True
        try:
            lost = await asyncio.to_thread(self._spool.append, [orjson.dumps(row) for row in rows])
        except OSError as error:
            records_total.labels("dropped").inc(len(rows))
            log.exception("spool_not_writable", error=str(error), lost=len(rows))
            return
        records_total.labels("spooled").inc(len(rows))
        if lost:
            records_total.labels("dropped").inc(lost)
            log.warning("spool_full", lost=lost)

    async def _write(self, rows: list[Row], *, outcome: str) -> bool:
        """Insert rows; False when the database is away. A row that it refuses for its content is dropped alone."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._insert(rows)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            self._days.clear()
            if not _is_refused(error):
                self._retry_at = time.monotonic() + self._rest_s
                log.warning("calls_not_written", error=type(error).__name__, rows=len(rows))
                return False
        else:
            records_total.labels(outcome).inc(len(rows))
            return True
        if len(rows) == 1:
            records_total.labels("refused").inc()
            log.error("call_refused_by_database", id=rows[0].get("id"))
            return True
        middle = len(rows) // 2
        return await self._write(rows[:middle], outcome=outcome) and await self._write(rows[middle:], outcome=outcome)

    async def _insert(self, rows: list[Row]) -> None:
        for row in rows:
            await self._ensure_day(str(row["ts"]))
        async with self._engine.begin() as connection:
            await _insert_rows(connection, rows)

    async def _ensure_day(self, ts: str) -> None:
        """The partitions of a row's day, made in a transaction of its own and remembered."""
        if ts[:10] in self._days:
            return
        async with self._engine.begin() as connection:
            await connection.execute(ENSURE_PARTITIONS, {"moment": datetime.fromisoformat(ts).astimezone(UTC)})
        self._days.add(ts[:10])


def _is_refused(error: Exception) -> bool:
    """Whether the database spoke against the data itself (SQLSTATE classes 22 and 23), not against being asked.

    A row without a partition counts as the database's trouble: the partition is made again at the next try.
    """
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state == NO_PARTITION:
        return False
    return isinstance(error, DataError) or (isinstance(state, str) and state[:2] in {"22", "23"})


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("recorder_died", exc_info=error)


async def _insert_rows(connection: AsyncConnection, rows: list[Row]) -> None:
    given: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in {**_CALL_COLUMNS, **_BODY_COLUMNS}}
    given["ts"] = [datetime.fromisoformat(moment) for moment in given["ts"]]
    await connection.execute(INSERT_CALLS, {name: given[name] for name in _CALL_COLUMNS})
    await connection.execute(INSERT_BODIES, {name: given[name] for name in _BODY_COLUMNS})
