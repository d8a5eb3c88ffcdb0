"""A batch that this process works on: its lock, what is left to be asked, and keeping what came of it.

All of this goes over the one connection that holds the batch's lock, so that whoever loses that connection has lost the
batch as well, and cannot write into what another process goes on with. Each decision asked again is one row of
`replays`, written once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from libs.llm.call_record import storable_text, time_of
from libs.replay.batch.rows import Batch, find

MARGIN = timedelta(seconds=1)
"""How far a call's ts and the time in its id may lie apart."""
LONGEST_CALL = timedelta(minutes=10)
"""How long before its repair turn a call may have begun."""
LATEST = datetime.max.replace(tzinfo=UTC) - MARGIN
UUID_VERSION_WITH_TIME = 7


@dataclass(frozen=True, slots=True)
class Spent:
    """What the original answer cost with its repair turn, milliseconds and tokens; none where a kept reply gave it."""

    total_ms: float
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Original:
    """A stored decision: the forecast, its `features.llm`, and the original call where it is still kept."""

    forecast_id: UUID
    as_of: datetime
    feed: str
    ticker: str
    llm: dict[str, Any]
    spent: Spent | None = None


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """One decision asked again. `status` is that of the answer; "refused" where our own side could not ask."""

    original: Original
    call_id: UUID | None
    new_call_id: UUID | None
    status: Literal["ok", "invalid", "unavailable", "refused"]
    error: str | None
    before: dict[str, Any]
    after: dict[str, Any]
    flip: str | None
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


LOCK_ID = "hashtextextended('replay_batches:' || cast(cast(:id as uuid) as text), 0)"
TRY_LOCK = text(f"select pg_try_advisory_lock({LOCK_ID})")
UNLOCK = text(f"select pg_advisory_unlock({LOCK_ID})")

# A machine that is gone without a word must not hold a batch for hours. A Unix socket takes the words and needs none.
NOTICE_THE_DEAD = text(
    "select set_config('tcp_keepalives_idle', '15', false), set_config('tcp_keepalives_interval', '5', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)

# What is to be asked, gathered once. A forecast's id is a hash, so the first ids are a fair sample of the period
# where a limit leaves some out, and the same ones each time. The table goes with the connection.
CLEAR = text("drop table if exists pg_temp.replay_left")
MAKE = text(
    "create temporary table replay_left (position bigint primary key, id uuid not null, as_of timestamptz not null)"
)
GATHER = text(
    """
    insert into pg_temp.replay_left (position, id, as_of)
    select row_number() over (order by chosen.id), chosen.id, chosen.as_of from (
      select f.id, f.as_of from forecasts f
      where f.ts >= :since and f.ts < :until and f.features -> 'llm' -> :part ->> 'status' in ('ok', 'invalid')
        and not exists (select from replays r where r.batch_id = :id and r.forecast_id = f.id)
      order by f.id limit (select greatest(0, most - done - failed) from replay_batches where id = :id)
    ) as chosen
    """
)

# The limit keeps the look-up one of single rows, each in the one partition that its as_of names. What was judged again
# since it was gathered, and has no answer any more, is passed over like what is gone.
NEXT = text(
    """
    select f.*, wanted.position
    from (
      select position, id, as_of from pg_temp.replay_left where position > :after order by position limit :limit
    ) as wanted
    left join lateral (
      select id as forecast_id, as_of, feed, ticker, features -> 'llm' as llm from forecasts
      where forecasts.as_of = wanted.as_of and forecasts.id = wanted.id
        and features -> 'llm' -> :part ->> 'status' in ('ok', 'invalid')
      limit 1
    ) as f on true
    order by wanted.position
    """
)
# An answer that was repaired cost both turns, as a new one does.
SPENT = text(
    """
    select last.id, last.total_ms + coalesce(first.total_ms, 0) as total_ms,
      last.tokens_in + coalesce(first.tokens_in, 0) as tokens_in,
      last.tokens_out + coalesce(first.tokens_out, 0) as tokens_out
    from llm_calls last left join llm_calls first on first.id = last.retry_of and first.ts between :earliest and :high
    where last.id = any(:ids) and last.ts between :low and :high and not last.cached
      and (last.retry_of is null or first.id is not null)
    """
)

START = text(
    """
    update replay_batches set state = 'running', error = null, started_at = coalesce(started_at, now()),
      total = (select count(*) from pg_temp.replay_left) + done + failed
    where id = :id and state in ('queued', 'running') returning total
    """
)
STORE = text(
    """
    with stored as (
    insert into replays (id, batch_id, call_id, forecast_id, as_of, ticker, prompt_key, prompt_version, prompt_hash,
      source, new_call_id, status, error, before, after, flip, total_ms, tokens_in, tokens_out, asked_by)
    select given.id, b.id, given.call_id, given.forecast_id, given.as_of, given.ticker, b.prompt_key, b.prompt_version,
      b.prompt_hash, 'model', given.new_call_id, given.status, given.error, given.before, given.after, given.flip,
      given.total_ms, given.tokens_in, given.tokens_out, b.asked_by
    from replay_batches b, jsonb_to_recordset(cast(:rows as jsonb)) as given (
      id uuid, call_id uuid, forecast_id uuid, as_of timestamptz, ticker text, new_call_id uuid, status text,
      error text, before jsonb, after jsonb, flip text, total_ms real, tokens_in integer, tokens_out integer)
    where b.id = :id
    on conflict (batch_id, forecast_id) where batch_id is not null do nothing
    returning status
    )
    update replay_batches set done = done + (select count(*) from stored where status in ('ok', 'invalid')),
      failed = failed + (select count(*) from stored where status not in ('ok', 'invalid'))
    where id = :id
    """
)
SAY = text("update replay_batches set error = :error where id = :id and state = 'running' returning id")
IS_RUNNING = text("select state = 'running' from replay_batches where id = :id")


class Held:
    """A batch that this process works on, by the one connection that holds its lock."""

    def __init__(self, connection: AsyncConnection, batch: Batch) -> None:
        self._connection = connection
        self.batch = batch
        self._after = 0

    @classmethod
    async def take(cls, connection: AsyncConnection, batch_id: UUID) -> "Held | None":
        """Take an open batch; None where another process holds it, or it has ended.

        The lock lasts as long as the connection: end that, rather than give it back to a pool.
        """
        async with connection.begin():
            if not await connection.scalar(TRY_LOCK, {"id": batch_id}):
                return None
            batch = await find(connection, batch_id)
            if batch is None or not batch.open:
                await connection.execute(UNLOCK, {"id": batch_id})
                return None
            await connection.execute(NOTICE_THE_DEAD)
        return cls(connection, batch)

    async def begin(self) -> int | None:
        """Gather what is left to be asked; the number of all decisions, or None where the batch has ended."""
        batch = self.batch
        period = {"id": batch.id, "since": batch.since, "until": batch.until, "part": batch.prompt_key}
        async with self._connection.begin():
            await self._connection.execute(CLEAR)
            await self._connection.execute(MAKE)
            await self._connection.execute(GATHER, period)
            total: int | None = await self._connection.scalar(START, {"id": batch.id})
        return total

    async def next(self, limit: int) -> list[Original]:
        """The next decisions to ask again; none when all were given out. Those that are gone are passed over."""
        async with self._connection.begin():
            while True:
                asked = {"after": self._after, "limit": limit, "part": self.batch.prompt_key}
                found = await self._connection.execute(NEXT, asked)
                rows = found.mappings().all()
                if not rows:
                    return []
                self._after = int(rows[-1]["position"])
                there = [row for row in rows if row["forecast_id"] is not None]
                if there:
                    return await self._with_spent(there)

    async def store(self, rows: Sequence[ReplayRow]) -> bool:
        """Keep what came of decisions; False where the batch has been ended by somebody meanwhile."""
        async with self._connection.begin():
            if rows:
                documents = json.dumps([_document(row) for row in rows], allow_nan=False)
                await self._connection.execute(STORE, {"id": self.batch.id, "rows": documents})
            return bool(await self._connection.scalar(IS_RUNNING, {"id": self.batch.id}))

    async def say(self, error: str | None) -> None:
        """Say what the batch waits for, or that it waits no longer."""
        async with self._connection.begin():
            told = None if error is None else storable_text(error)
            await self._connection.execute(SAY, {"id": self.batch.id, "error": told})

    async def _with_spent(self, rows: Sequence[RowMapping]) -> list[Original]:
        part = self.batch.prompt_key
        found = (call_id_of(row["llm"], part) for row in rows)
        ids = [one for one in found if one is not None and one.version == UUID_VERSION_WITH_TIME]
        spent: dict[UUID, Spent] = {}
        if ids:
            moments = [time_of(one) for one in ids]
            low, high = min(moments) - MARGIN, max(moments) + MARGIN
            bounds = {"earliest": low - LONGEST_CALL, "low": low, "high": high}
            for row in await self._connection.execute(SPENT, {"ids": ids, **bounds}):
                spent[row.id] = Spent(row.total_ms, row.tokens_in, row.tokens_out)
        return [_original(row, spent, part) for row in rows]


def call_id_of(llm: Mapping[str, Any], part: str) -> UUID | None:
    """The call behind a stored answer; None where the record (`features.llm`) names none, or none that can be."""
    try:
        found = UUID(llm[part]["call_id"])
        if found.version == UUID_VERSION_WITH_TIME and time_of(found) > LATEST:
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found


def _original(row: RowMapping, spent: dict[UUID, Spent], part: str) -> Original:
    call_id = call_id_of(row["llm"], part)
    return Original(
        forecast_id=row["forecast_id"],
        as_of=row["as_of"],
        feed=row["feed"],
        ticker=row["ticker"],
        llm=row["llm"],
        spent=None if call_id is None else spent.get(call_id),
    )


def _document(row: ReplayRow) -> dict[str, Any]:
    original = row.original
    return {
        "id": str(uuid7()),
        "call_id": None if row.call_id is None else str(row.call_id),
        "forecast_id": str(original.forecast_id),
        "as_of": original.as_of.isoformat(),
        "ticker": original.ticker,
        "new_call_id": None if row.new_call_id is None else str(row.new_call_id),
        "status": row.status,
        "error": None if row.error is None else storable_text(row.error),
        "before": row.before,
        "after": row.after,
        "flip": row.flip,
        "total_ms": row.total_ms,
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
    }
