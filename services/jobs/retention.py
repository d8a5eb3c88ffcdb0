"""Partitions made ahead, and whole ones dropped when everything in them is past its time.

Replays hold texts of calls too, and lose them with the calls. What workers did for an evaluation goes when nobody comes
for it.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from prometheus_client import Counter
from pydantic import Field
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.evaluation.sharing.register import forget
from libs.settings import Settings

CACHE_BATCH = 10_000
REPLAY_BATCH = 1_000
LAST_ID = UUID(int=2**128 - 1)
QUEUE_LOG_DAYS = 7

DROPPED = Counter("lexi_jobs_partitions_dropped_total", "Partitions dropped by retention", ["parent"])

log = structlog.get_logger(__name__)


class RetentionSettings(Settings):
    """How long history is kept."""

    retention_calls_days: int = Field(default=90, ge=1, description="Days model calls and their bodies are kept.")
    retention_forecasts_days: int = Field(default=730, ge=1, description="Days forecasts are kept after being written.")
    retention_shards_days: int = Field(
        default=7, ge=1, description="Days what workers did for an evaluation waits for whoever asked to come for it."
    )


# Today's and tomorrow's, this month's and the next one's: whoever inserts first need not create them.
MAKE_AHEAD = text(
    """
    select ensure_partition('llm_calls', 'day', now()), ensure_partition('llm_calls', 'day', now() + interval '1 day'),
      ensure_partition('llm_bodies', 'day', now()), ensure_partition('llm_bodies', 'day', now() + interval '1 day'),
      ensure_partition('forecasts', 'month', now()),
      ensure_partition('forecasts', 'month', date_trunc('month', now(), 'UTC') + interval '1 month')
    """
)

# The days of a parent's partitions are in their names; a partition is past its time when its last moment is.
OLD_DAYS = text(
    """
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = cast(:parent as regclass) and c.relname ~ '_[0-9]{8}$'
      and (to_timestamp(right(c.relname, 8), 'YYYYMMDD')::timestamp at time zone 'UTC') + interval '1 day'
        <= now() - make_interval(days => :days)
    order by c.relname
    """
)

FORECAST_MONTHS = text(
    """
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = cast('forecasts' as regclass) order by c.relname
    """
)

# Heads that point into a partition that is gone.
CLEAR_HEADS = text(
    """
    delete from forecast_heads h
    where not exists (select from forecasts f where f.as_of = h.as_of and f.id = h.id)
    """
)

# Without its call a replay of one has no use any more.
OLD_REPLAYS = text(
    """
    delete from replays where id in (
      select id from replays where batch_id is null and call_id < :first_kept order by call_id limit :batch)
    """
)

# Batches are asked for by people, so they are few. The texts of one go from its last row to its first: where that has
# none, they are all gone.
BATCHES_WITH_TEXTS = text(
    """
    select b.id from replay_batches b
    cross join lateral (
      select r.after from replays r where r.batch_id = b.id order by r.forecast_id limit 1
    ) as first
    where b.finished_at < now() - make_interval(days => :days) and first.after ->> 'text' is not null
    order by b.id
    """
)
FORGET_TEXTS = text(
    """
    with page as (
      select id, forecast_id from replays where batch_id = :batch_id and forecast_id < :below
      order by forecast_id desc limit :batch
    ), forgotten as (
      update replays r
      set before = r.before || '{"text": null, "value": null}', after = r.after || '{"text": null, "value": null}'
      from page where r.id = page.id
    )
    select forecast_id from page order by forecast_id limit 1
    """
)

# Rows and shards wait for who asked. An evaluation counts as left alone once nothing came of it for so long: a worker
# that takes a shard, and may not do it, shows nothing. One without shards was opened by who did not end it.
LEFT_ALONE = text(
    """
    select e.id from evaluations e left join evaluation_shards s on s.evaluation_id = e.id
    where e.state = 'running' or s.evaluation_id is not null
    group by e.id
    having e.state <> 'running' or greatest(e.created_at, max(s.handed_out_at), max(s.finished_at),
      (select max(r.at) from evaluation_rows r where r.evaluation_id = e.id)) < now() - make_interval(days => :days)
    order by e.id
    """
)
END_LEFT_ALONE = text(
    """
    update evaluations set state = 'failed', finished_at = now(), error = :error where id = :id and state = 'running'
    """
)

EXPIRED_CACHE = text(
    """
    delete from llm_cache where key in (
      select key from llm_cache where expires_at < now() order by expires_at limit :batch)
    """
)

OLD_QUEUE_LOG = text("delete from pgqueuer_log where aggregated and created < now() - make_interval(days => :days)")
OLD_QUEUE_STATISTICS = text("delete from pgqueuer_statistics where created < now() - make_interval(days => :days)")


async def make_ahead(engine: AsyncEngine) -> None:
    """Make the partitions that will be needed next."""
    async with engine.begin() as connection:
        await connection.execute(MAKE_AHEAD)


async def drop_old(engine: AsyncEngine, settings: RetentionSettings) -> list[str]:
    """Drop every partition past its time; returns their names.

    Calls and bodies go by their `ts`. Forecasts go by the newest `ts` in the partition and never by `as_of`: replayed
    market time is old however young the row is. An empty partition of forecasts stays.
    """
    dropped: list[str] = []
    for parent in ("llm_bodies", "llm_calls"):
        async with engine.connect() as connection:
            values = {"parent": parent, "days": settings.retention_calls_days}
            names = list(await connection.scalars(OLD_DAYS, values))
        dropped += [name for name in names if await drop(engine, name, parent)]
    async with engine.connect() as connection:
        names = list(await connection.scalars(FORECAST_MONTHS))
    for name in names:
        if await is_past(engine, name, settings.retention_forecasts_days) and await drop(engine, name, "forecasts"):
            dropped.append(name)
    return dropped


async def forget_replays(engine: AsyncEngine, settings: RetentionSettings) -> int:
    """Delete replays of calls that are kept no more, and what models said from batches that ended as long ago.

    Rows of a batch keep what its report is made of: decisions, rules, turns, times and tokens. Returns how many replays
    were deleted. A step locks few rows, and for no longer than it takes to write them.
    """
    days, deleted = settings.retention_calls_days, 0
    calls = {"first_kept": first_id_of(datetime.now(UTC) - timedelta(days=days)), "batch": REPLAY_BATCH}
    while True:
        async with engine.begin() as connection:
            gone = (await connection.execute(OLD_REPLAYS, calls)).rowcount
        deleted += gone
        if gone < REPLAY_BATCH:
            break
    async with engine.connect() as connection:
        batches = list(await connection.scalars(BATCHES_WITH_TEXTS, {"days": days}))
    for batch_id in batches:
        below: UUID | None = LAST_ID
        while below is not None:
            where = {"batch_id": batch_id, "below": below, "batch": REPLAY_BATCH}
            async with engine.begin() as connection:
                below = await connection.scalar(FORGET_TEXTS, where)
    return deleted


async def forget_evaluations(engine: AsyncEngine, settings: RetentionSettings) -> list[UUID]:
    """Let go of what workers did for evaluations that nobody comes for, which have failed then; returns which."""
    days = settings.retention_shards_days
    async with engine.connect() as connection:
        left = list(await connection.scalars(LEFT_ALONE, {"days": days}))
    for evaluation_id in left:
        async with engine.begin() as connection:
            error = f"nobody came for what the workers did within {days} days (RETENTION_SHARDS_DAYS)"
            await connection.execute(END_LEFT_ALONE, {"id": evaluation_id, "error": error})
            await forget(connection, evaluation_id)
        log.info("evaluation_left_alone", evaluation=str(evaluation_id))
    return left


def first_id_of(moment: datetime) -> UUID:
    """What the ids of the calls of a moment's day (UTC) begin at: calls are dropped by whole days."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return UUID(int=int(midnight.timestamp() * 1000) << 80)


async def is_past(engine: AsyncEngine, partition: str, days: int) -> bool:
    """Whether a partition has rows and all of them were written more than that many days ago."""
    # A young row is usually found in the first pages; only a partition about to go is read whole.
    statement = text(
        f"""
        select exists (select from {partition})
          and not exists (select from {partition} where ts >= now() - make_interval(days => :days))
        """
    )
    async with engine.connect() as connection:
        return bool(await connection.scalar(statement, {"days": days}))


async def drop(engine: AsyncEngine, partition: str, parent: str) -> bool:
    """Drop one partition; False where it is in use just now, so that nobody waits behind us for the lock."""
    try:
        async with engine.begin() as connection:
            await drop_on(connection, partition, parent)
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        log.info("partition_in_use", partition=partition)
        return False
    DROPPED.labels(parent).inc()
    log.info("partition_dropped", partition=partition)
    return True


LOCK_NOT_AVAILABLE = "55P03"


async def drop_on(connection: AsyncConnection, partition: str, parent: str) -> None:
    """Drop one partition inside a transaction, and what pointed into it."""
    await connection.execute(text("set local lock_timeout = '2s'"))
    await connection.execute(text(f"drop table {partition}"))
    if parent == "forecasts":
        await connection.execute(CLEAR_HEADS)


async def clear_expired(engine: AsyncEngine) -> int:
    """Delete expired replies, batch by batch, and old lines of the queue's own books; returns the replies deleted."""
    total = 0
    while True:
        async with engine.begin() as connection:
            deleted = (await connection.execute(EXPIRED_CACHE, {"batch": CACHE_BATCH})).rowcount
        total += deleted
        if deleted < CACHE_BATCH:
            break
    async with engine.begin() as connection:
        for statement in (OLD_QUEUE_LOG, OLD_QUEUE_STATISTICS):
            await connection.execute(statement, {"days": QUEUE_LOG_DAYS})
    return total
