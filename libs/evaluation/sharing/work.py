"""A worker's side of a shared evaluation: taking a shard, showing that one is still at it, keeping rows, ending it.

A shard belongs to who took it last. Whoever took it before finds out with its next sign of life, and leaves it; the
rows it brings until then are answers like any other, and count where there is none of their item yet.

Every step is one statement that commits by itself: a machine that vanishes between two leaves no lock behind, for which
the others would wait until Postgres notices.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.evaluation.running.row import Row
from libs.evaluation.sharing.store import queue_up
from libs.llm.call_record import storable_text

ORPHANED_S = 30
"""After how long without a sign of life a shard without a job is queued again."""
MOST_AT_ONCE = 1_000


class ShardLost(Exception):
    """Another worker has the shard now, or the evaluation has ended."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A shard as its worker has it. `known` are items whose rows who asked had before.

    `taken` counts how often anybody took it; `turn` is of this time alone, and of no other shard's.
    """

    evaluation_id: UUID
    shard: int
    step: int
    taken: int
    turn: int
    worker: str
    plan: Mapping[str, Any]
    cases: bytes
    known: frozenset[int]

    @property
    def key(self) -> dict[str, Any]:
        """What finds it, and nobody else's."""
        return {"id": self.evaluation_id, "shard": self.shard, "turn": self.turn}


TAKE = text(
    """
    update evaluation_shards s
    set worker = :worker, taken = s.taken + 1, turn = nextval('evaluation_turns'), seen_at = now(), error = null
    from evaluations e
    where e.id = s.evaluation_id and e.state = 'running'
      and s.evaluation_id = :id and s.shard = :shard and s.finished_at is null
    returning s.step, s.taken, s.turn, s.cases, s.known, e.plan
    """
)
STORED = text("select item from evaluation_rows where evaluation_id = :id and item = any(cast(:items as integer[]))")

# Rows are read by position, so positions must be given in the order in which rows become visible: who stores rows of an
# evaluation locks it first, so that one comes after the other.
STORE = text(
    """
    with turn as materialized (
      select id from evaluations where id = :id and state = 'running' for no key update
    ), kept as (
      insert into evaluation_rows (evaluation_id, item, shard, worker, row)
      select turn.id, given.item, :shard, :worker, given.row
      from turn cross join unnest(cast(:items as integer[]), cast(:rows as text[])) as given (item, row)
      on conflict (evaluation_id, item) do nothing
    )
    select exists (select from turn)
    """
)
STILL_MINE = "where evaluation_id = :id and shard = :shard and turn = :turn and finished_at is null"
BEAT = text(
    f"""
    update evaluation_shards set seen_at = now(), error = :error {STILL_MINE}
      and exists (select from evaluations where id = :id and state = 'running')
    returning shard
    """
)
FINISH = text(f"update evaluation_shards set finished_at = now(), seen_at = now(), error = null {STILL_MINE}")
SAY = text(f"update evaluation_shards set error = :error {STILL_MINE}")

# A job may be lost while its shard is not: PgQueuer deletes one whose worker is cancelled, such as when it must end and
# Postgres hangs.
ORPHANED = text(
    """
    select s.evaluation_id, s.shard from evaluation_shards s join evaluations e on e.id = s.evaluation_id
    where e.state = 'running' and s.finished_at is null
      and coalesce(s.seen_at, e.created_at) < now() - make_interval(secs => :orphaned_s)
      and not exists (select from pgqueuer q where q.status in ('queued', 'picked')
        and q.dedupe_key = 'evaluation_shard:' || s.evaluation_id || ':' || s.shard)
    order by s.evaluation_id, s.shard limit :limit
    """
)


@asynccontextmanager
async def _at_once(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """A connection on which each statement commits by itself."""
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


async def take(engine: AsyncEngine, evaluation_id: UUID, shard: int, *, worker: str) -> Taken | None:
    """Take a shard, from whoever had it before; None where there is nothing to do on it any more."""
    values = {"id": evaluation_id, "shard": shard, "worker": worker}
    async with _at_once(engine) as connection:
        row = (await connection.execute(TAKE, values)).mappings().one_or_none()
        if row is None:
            return None
        return Taken(
            evaluation_id=evaluation_id,
            shard=shard,
            step=row["step"],
            taken=row["taken"],
            turn=row["turn"],
            worker=worker,
            plan=row["plan"],
            cases=bytes(row["cases"]),
            known=frozenset(row["known"]),
        )


async def had(engine: AsyncEngine, taken: Taken, items: Iterable[int]) -> frozenset[int]:
    """Those of a shard's items that need not be asked again: whoever had it before stored rows of them."""
    async with _at_once(engine) as connection:
        stored = await connection.scalars(STORED, {"id": taken.evaluation_id, "items": list(items)})
        return taken.known.union(stored)


async def store(engine: AsyncEngine, taken: Taken, rows: Sequence[Row]) -> None:
    """Keep rows; those of items that have one already are let go. Raises `ShardLost` where the evaluation has ended."""
    items = [row.item for row in rows]
    lines = [row.line().decode().removesuffix("\n") for row in rows]
    values = {"id": taken.evaluation_id, "shard": taken.shard, "worker": taken.worker, "items": items, "rows": lines}
    async with _at_once(engine) as connection:
        if not await connection.scalar(STORE, values):
            raise ShardLost


async def beat(engine: AsyncEngine, taken: Taken, *, waits_for: str | None) -> None:
    """Show that the worker is still at it, and what it waits for. Raises `ShardLost` where it must not be any more."""
    told = None if waits_for is None else storable_text(waits_for)
    async with _at_once(engine) as connection:
        if await connection.scalar(BEAT, taken.key | {"error": told}) is None:
            raise ShardLost


async def finish(engine: AsyncEngine, taken: Taken) -> None:
    """All its items have rows."""
    async with _at_once(engine) as connection:
        await connection.execute(FINISH, taken.key)


async def say(engine: AsyncEngine, taken: Taken, error: str) -> None:
    """Tell who asked why the worker cannot go on with the shard."""
    async with _at_once(engine) as connection:
        await connection.execute(SAY, taken.key | {"error": storable_text(error)})


async def queue_orphans(engine: AsyncEngine, *, orphaned_s: float = ORPHANED_S) -> int:
    """Queue a job for each shard that nobody works on and none is queued for; returns how many."""
    async with _at_once(engine) as connection:
        found = await connection.execute(ORPHANED, {"orphaned_s": orphaned_s, "limit": MOST_AT_ONCE})
        shards = [(row.evaluation_id, row.shard) for row in found]
        await queue_up(connection, shards)
    return len(shards)
