"""A period's decisions through another version: asked for here, worked on by the jobs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.json_numbers import JsonValue, Number
from libs.keys import GuardedRoute, Key, require
from libs.problems import Conflict, NotFound, Unprocessable
from libs.replay.batch import rows as batches
from libs.replay.batch.report import in_order
from libs.replay.batch.rows import MOST, Batch, BatchRefused, BatchState
from services.api.deps import Reader, State, Writer

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

router = APIRouter(prefix="/llm/admin", route_class=GuardedRoute)

may_administer = Depends(require("admin"))
Caller = Annotated[Key, may_administer]


def _written_time(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("give the time as ISO 8601 text with its zone")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written_time), Field(ge=EARLIEST, le=LATEST)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class BatchQuestion(BaseModel):
    """Which decisions go through which version: those written in [since, until), at most `limit` of them.

    The times are those of writing, not of the market. With a limit a fair sample of the period is taken, the same one
    each time. `until` is now where it is left out or lies ahead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Moment
    until: Moment | None = None
    prompt_key: Word
    version: Word
    limit: Annotated[int, Field(strict=True, ge=1, le=MOST)] = MOST


class BatchAnswer(BaseModel):
    """A batch. `total` is null until a process has counted, `report` until all was asked.

    `done` are answered, `failed` given up. While it runs, `error` says what it waits for; afterwards why it failed.
    `eta_s` is how long the rest takes at the pace of the last minute, null where that cannot be told.
    """

    id: UUID
    state: BatchState
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    since: datetime
    until: datetime
    limit: int
    asked_by: str
    total: int | None
    done: int
    failed: int
    eta_s: Number | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    report: dict[str, JsonValue] | None


class BatchesQuery(BaseModel):
    """How many batches are listed. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100)] = 20


async def answer_of(connection: AsyncConnection, batch: Batch, *, with_report: bool = True) -> BatchAnswer:
    """A batch with how far it is."""
    now = await batches.progress(connection, batch)
    report: dict[str, Any] | None = in_order(batch.report) if with_report and batch.report is not None else None
    return BatchAnswer(
        id=batch.id,
        state=batch.state,
        prompt_key=batch.prompt_key,
        prompt_version=batch.prompt_version,
        prompt_hash=batch.prompt_hash,
        since=batch.since,
        until=batch.until,
        limit=batch.most,
        asked_by=batch.asked_by,
        total=batch.total,
        done=now.done,
        failed=now.failed,
        eta_s=now.eta_s,
        error=batch.error,
        created_at=batch.created_at,
        started_at=batch.started_at,
        finished_at=batch.finished_at,
        report=report,
    )


async def known(connection: AsyncConnection, batch_id: UUID) -> Batch:
    """The batch of that id. Raises `NotFound`."""
    batch = await batches.find(connection, batch_id)
    if batch is None:
        raise NotFound(f"there is no batch {batch_id}")
    return batch


@router.post("/replays", status_code=202, dependencies=[may_administer])
async def ask(writer: Writer, state: State, asked: BatchQuestion, key: Caller) -> BatchAnswer:
    """Ask for a batch; the next free process of the jobs takes it. 422 where such a batch makes no sense."""
    try:
        batch = await batches.ask_for(
            writer,
            state.prompts.now.registry,
            key=asked.prompt_key,
            version=asked.version,
            since=asked.since,
            until=asked.until,
            most=asked.limit,
            asked_by=key.name,
        )
    except BatchRefused as error:
        raise Unprocessable(str(error)) from error
    return await answer_of(writer, batch)


@router.get("/replays", dependencies=[may_administer])
async def recent(reader: Reader, asked: Annotated[BatchesQuery, Query()]) -> Sequence[BatchAnswer]:
    """The batches asked for last, newest first, without their reports."""
    found = await batches.newest(reader, limit=asked.limit)
    return [await answer_of(reader, batch, with_report=False) for batch in found]


@router.get("/replays/{batch_id}", dependencies=[may_administer])
async def one(reader: Reader, batch_id: UUID) -> BatchAnswer:
    """One batch: how far it is, then what it found."""
    return await answer_of(reader, await known(reader, batch_id))


@router.delete("/replays/{batch_id}", dependencies=[may_administer])
async def cancel(writer: Writer, batch_id: UUID) -> BatchAnswer:
    """End a batch that waits or runs; what is answered is kept. 409 where it has ended already."""
    if not await batches.end(writer, batch_id, "cancelled"):
        ended = await known(writer, batch_id)
        raise Conflict(f"batch {batch_id} has ended already: {ended.state}")
    return await answer_of(writer, await known(writer, batch_id))
