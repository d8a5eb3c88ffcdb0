"""Handing an evaluation to workers, as rows of Postgres: its shards with their jobs, how they stand, and their rows.

This is the side of who asks. Everything of one evaluation is handed out in one transaction, so that there is never a
shard without a job, nor a job whose shard is not there.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import orjson
from pgqueuer import Queries
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row, row_from
from libs.evaluation.sharing.register import forget
from libs.evaluation.sharing.shards import Cut, count_of, pack
from libs.llm.call_record import json_text, storable_text

ENTRYPOINT = "evaluation_shard"
PAGE = 1_000
"""How many rows are read at once, and how many jobs queued."""


class SharingError(Exception):
    """An evaluation cannot be handed to workers, or they cannot do it; the message says why and what to do."""


class Cases(Protocol):
    """Cases by their place, such as a `CaseFile`."""

    def case(self, number: int, /) -> EvalCase:
        """The case at this place, from 0 on."""
        ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a worker could not go on with a shard."""

    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How the work stands. `workers` are those that took shards last, `troubles` of shards that are not finished.

    `working` says that somebody was at a shard lately, without trouble; `taken` counts those that anybody ever took.
    `open` is False once the evaluation has ended, or is not there any more.
    """

    open: bool
    shards: int
    finished: int
    taken: int
    working: bool
    workers: tuple[str, ...]
    troubles: tuple[Trouble, ...]


BEGIN = text(
    """
    insert into evaluations (id, name, asked_by, plan, made_at, total, state)
    values (:id, :name, :asked_by, cast(:plan as jsonb), least(:made_at, now()), :total, 'running')
    on conflict (id) do update set state = 'running', passed = null, error = null, finished_at = null
    """
)
HELD = text("select state from evaluations where id = :id for update")
HAS_SHARDS = text("select exists (select from evaluation_shards where evaluation_id = :id)")
PROMPT = text(
    """
    insert into evaluation_prompts (evaluation_id, prompt_key, prompt_version, prompt_hash)
    values (:id, :key, :version, :hash)
    on conflict (evaluation_id, prompt_key, prompt_version) do update set passed = null
    """
)
SHARD = text(
    """
    insert into evaluation_shards (evaluation_id, shard, step, cases, known) values (:id, :shard, :step, :cases, :known)
    """
)
STANDING = text(
    """
    select e.state = 'running' as open, count(s.shard) as shards, count(s.finished_at) as finished,
      count(s.worker) as taken, coalesce(bool_or(s.finished_at is null and s.error is null
        and s.seen_at > now() - make_interval(secs => :lately_s)), false) as working,
      coalesce(array_agg(distinct s.worker) filter (where s.worker is not null), '{}') as workers,
      coalesce(jsonb_agg(distinct jsonb_build_object('worker', s.worker, 'error', s.error))
        filter (where s.finished_at is null and s.error is not null), '[]') as troubles
    from evaluations e left join evaluation_shards s on s.evaluation_id = e.id
    where e.id = :id group by e.id
    """
)
ROWS = text(
    """
    select position, row from evaluation_rows where evaluation_id = :id and position > :after
    order by position limit :limit
    """
)
CANCEL = text(
    """
    update evaluations set state = 'cancelled', finished_at = now(), error = :why where id = :id and state = 'running'
    returning id
    """
)


async def hand_out(
    connection: AsyncConnection,
    plan: Plan,
    *,
    cases: Cases,
    known: Collection[int],
    asked_by: str,
    anew: bool = False,
) -> bool:
    """Hand every item that is not `known` to the workers, inside the connection's transaction.

    False where nothing is missing, and where they have them already: whoever asked was gone for a while and only has to
    collect. With `anew` what they have is let go, for all of it is home. An evaluation that has ended is opened again.
    Raises `SharingError`.
    """
    if plan.rate is not None:
        raise SharingError("rate: workers share no clock for arrivals; give --rate without --workers, or the other way")
    evaluation_id = plan.evaluation_id
    held = await have_it(connection, evaluation_id)
    if len(known) >= plan.items or (held and not anew):
        return False
    begun = {"id": evaluation_id, "name": storable_text(plan.name), "asked_by": storable_text(asked_by)}
    planned = {"plan": json_text(plan.document()), "made_at": plan.made_at, "total": plan.items}
    await connection.execute(BEGIN, begun | planned)
    await forget(connection, evaluation_id)
    for pinned in plan.versions:
        pin = {"key": pinned.prompt, "version": pinned.version, "hash": pinned.hash}
        await connection.execute(PROMPT, {"id": evaluation_id, **pin})
    step = count_of(plan, workers=plan.workers)
    made = [shard for shard in range(step) if await _make(connection, Cut(plan, shard, step), cases=cases, known=known)]
    await queue_up(connection, [(evaluation_id, shard) for shard in made])
    return True


async def have_it(connection: AsyncConnection, evaluation_id: UUID) -> bool:
    """Whether workers have an evaluation that has not ended, done with it or not; nobody else opens or ends it then."""
    state = await connection.scalar(HELD, {"id": evaluation_id})
    return state == "running" and bool(await connection.scalar(HAS_SHARDS, {"id": evaluation_id}))


async def _make(connection: AsyncConnection, cut: Cut, *, cases: Cases, known: Collection[int]) -> bool:
    """Store one shard; False where nothing is missing in it."""
    items = list(cut.items)
    had = [item for item in items if item in known]
    if len(had) == len(items):
        return False
    packed = await asyncio.to_thread(lambda: pack(cases.case(index) for index in cut.cases))
    values = {"id": cut.plan.evaluation_id, "shard": cut.shard, "step": cut.step, "cases": packed, "known": had}
    await connection.execute(SHARD, values)
    return True


async def queue_up(connection: AsyncConnection, shards: Sequence[tuple[UUID, int]]) -> None:
    """Queue a job for each shard, save where one waits or runs already; inside the connection's transaction, if any."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    queries = Queries.from_asyncpg_connection(driver)
    for begin in range(0, len(shards), PAGE):
        page = shards[begin : begin + PAGE]
        await queries.enqueue(
            [ENTRYPOINT] * len(page),
            [payload(*one) for one in page],
            [0] * len(page),
            dedupe_key=[f"{ENTRYPOINT}:{evaluation_id}:{shard}" for evaluation_id, shard in page],
            on_conflict="skip",
        )


def payload(evaluation_id: UUID, shard: int) -> bytes:
    """What a job carries."""
    return orjson.dumps({"evaluation": str(evaluation_id), "shard": shard})


async def standing(connection: AsyncConnection, evaluation_id: UUID, *, lately_s: float) -> Standing:
    """How the work stands."""
    values = {"id": evaluation_id, "lately_s": lately_s}
    row = (await connection.execute(STANDING, values)).mappings().one_or_none()
    if row is None:
        return Standing(open=False, shards=0, finished=0, taken=0, working=False, workers=(), troubles=())
    found: dict[str, Any] = dict(row)
    found["workers"] = tuple(sorted(found["workers"]))
    found["troubles"] = tuple(Trouble(**one) for one in found["troubles"])
    return Standing(**found)


async def rows_after(
    connection: AsyncConnection, evaluation_id: UUID, *, after: int
) -> AsyncIterator[tuple[int, list[Row]]]:
    """The rows that came after a position, page by page, each with the position to go on from.

    Positions are given in the order in which rows become visible (see `work.store`), so that none comes up behind.
    """
    while True:
        found = await connection.execute(ROWS, {"id": evaluation_id, "after": after, "limit": PAGE})
        page = found.all()
        if not page:
            return
        after = page[-1].position
        yield after, list(_rows(one.row for one in page))


def _rows(lines: Iterable[str]) -> Iterable[Row]:
    return (row_from(line.encode()) for line in lines)


async def cancel(connection: AsyncConnection, evaluation_id: UUID, *, why: str) -> bool:
    """End an evaluation that workers are at, and let go of their work; False where none runs under this id."""
    if await connection.scalar(CANCEL, {"id": evaluation_id, "why": storable_text(why)}) is None:
        return False
    await forget(connection, evaluation_id)
    return True
