"""Batch replays as they are asked for, looked at and ended: the rows of `replay_batches`.

A batch sends every stored decision of a period through one version of its prompt. Any process of the jobs takes it.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from libs.judgement.assess import POLICY, RATIONALE
from libs.llm.call_record import storable_text
from libs.llm.registry import Registry

KEYS = (POLICY, RATIONALE)
"""The prompts of which a forecast keeps what was asked: the only ones whose decisions are stored."""
MOST = 1_000_000
"""How many decisions a batch may ask again."""
LATELY_S = 60
"""Over how many seconds the pace is taken that says how long the rest will last."""

BatchState: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN: tuple[BatchState, ...] = ("queued", "running")


class BatchRefused(Exception):
    """Such a batch cannot be asked for; the message names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A what-if over a period: the decisions written in [since, until), at most `most` of them, through one version.

    `total` is None until a process has counted them; `done` of them are answered, `failed` given up. While it runs,
    `error` says what it waits for; afterwards why it failed. `report` is there once all were asked, also where too many
    of them failed.
    """

    id: UUID
    prompt_key: str
    prompt_version: str
    prompt_hash: str
    since: datetime
    until: datetime
    most: int
    asked_by: str
    state: BatchState
    total: int | None
    done: int
    failed: int
    error: str | None
    report: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in OPEN


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is: answered, given up, and how many seconds the rest takes at the pace of the last minute."""

    done: int
    failed: int
    eta_s: float | None


COLUMNS = """
    id, prompt_key, prompt_version, prompt_hash, since, until, most, asked_by, state, total, done, failed,
    error, report, created_at, started_at, finished_at
"""

CREATE = text(
    f"""
    insert into replay_batches (id, prompt_key, prompt_version, prompt_hash, since, until, most, asked_by)
    values (:id, :prompt_key, :prompt_version, :prompt_hash, :since, :until, :most, :asked_by) returning {COLUMNS}
    """
)
FIND = text(f"select {COLUMNS} from replay_batches where id = :id")
NEWEST = text(f"select {COLUMNS} from replay_batches order by created_at desc, id desc limit :limit")
STILL_OPEN = text("select id from replay_batches where state in ('queued', 'running') order by created_at, id")

PACE = text(
    f"""
    select (select count(*) from replays where batch_id = :id and at > now() - interval '{LATELY_S} s') as lately,
      (select extract(epoch from now() - started_at) from replay_batches where id = :id) as age_s
    """
)

END = text(
    """
    update replay_batches set state = :state, error = :error, report = cast(:report as jsonb), finished_at = now(),
      total = case when :all_asked then done + failed else total end
    where id = :id and state in ('queued', 'running') returning id
    """
)


def check(registry: Registry, *, key: str, version: str, since: datetime, until: datetime) -> str:
    """The hash of the version that is to be asked. Raises `BatchRefused` where such a batch makes no sense."""
    if key not in KEYS:
        raise BatchRefused(f"prompt_key: only {' and '.join(KEYS)} are kept with each forecast, so not {key!r}")
    known = registry.versions(key)
    if version not in known:
        raise BatchRefused(f"version: {key} has no version {version!r}, only {', '.join(known)}")
    if since >= until:
        raise BatchRefused("since: must lie before until, and before now")
    return known[version].sha256


async def ask_for(
    connection: AsyncConnection,
    registry: Registry,
    *,
    key: str,
    version: str,
    since: datetime,
    until: datetime | None = None,
    most: int = MOST,
    asked_by: str,
) -> Batch:
    """Ask for a batch; any process of the jobs takes it. `until` is now where it is left out or lies ahead.

    Raises `BatchRefused`.
    """
    now = datetime.now(UTC)
    end = now if until is None else min(until, now)
    sha256 = check(registry, key=key, version=version, since=since, until=end)
    values = {"prompt_key": key, "prompt_version": version, "prompt_hash": sha256, "asked_by": asked_by}
    found = await connection.execute(CREATE, {"id": uuid7(), "since": since, "until": end, "most": most, **values})
    return _batch(found.mappings().one())


async def find(connection: AsyncConnection, batch_id: UUID) -> Batch | None:
    """A batch, None where there is none of that id."""
    row = (await connection.execute(FIND, {"id": batch_id})).mappings().one_or_none()
    return None if row is None else _batch(row)


async def newest(connection: AsyncConnection, *, limit: int) -> list[Batch]:
    """The batches asked for last, newest first."""
    return [_batch(row) for row in (await connection.execute(NEWEST, {"limit": limit})).mappings()]


async def still_open(connection: AsyncConnection) -> list[UUID]:
    """The batches that wait or run, oldest first."""
    return list(await connection.scalars(STILL_OPEN))


async def progress(connection: AsyncConnection, batch: Batch) -> Progress:
    """How far a batch is."""
    if batch.state != "running" or batch.total is None:
        return Progress(batch.done, batch.failed, None)
    pace = (await connection.execute(PACE, {"id": batch.id})).one()
    if not pace.lately:
        return Progress(batch.done, batch.failed, None)
    left = batch.total - batch.done - batch.failed
    return Progress(batch.done, batch.failed, left * min(float(LATELY_S), max(1.0, float(pace.age_s))) / pace.lately)


async def end(
    connection: AsyncConnection,
    batch_id: UUID,
    state: BatchState,
    *,
    error: str | None = None,
    report: dict[str, Any] | None = None,
) -> bool:
    """End an open batch; False where it has ended before. A `report` says that all of it was asked."""
    kept = None if report is None else json.dumps(report, allow_nan=False)
    told = None if error is None else storable_text(error)
    values = {"id": batch_id, "state": state, "error": told, "report": kept, "all_asked": kept is not None}
    return await connection.scalar(END, values) is not None


def _batch(row: RowMapping) -> Batch:
    values: dict[str, Any] = dict(row)
    return Batch(**values)
