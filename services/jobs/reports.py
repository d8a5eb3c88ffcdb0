"""Reports that people look at again and again, made here so that no page has to compute them: the newest of each name.

A report is a row of `reports`; who reads it sees when it was made.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeAlias

import structlog
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.exposures.answer import experiment_of, read_experiment
from libs.exposures.course_report import course_of, read_course
from libs.json_numbers import Number
from libs.llm.prompts import Prompts
from libs.shadow import USUAL_PAST, shadow_of

HOUR = timedelta(hours=1)

log = structlog.get_logger(__name__)

Report: TypeAlias = Callable[[AsyncEngine], Awaitable[BaseModel]]

# Validity is the share of valid answers among the answers: what was not answered in time says nothing about it. Answers
# from the cache are left out of it, and of the times. Replays are not the desk's own work.
LAST_HOUR = text(
    """
    select prompt_key, count(*) as calls, count(*) filter (where cached) as cached,
      count(*) filter (where status = 'timed_out') as timeouts,
      count(*) filter (where status in ('failed', 'cancelled')) as failed,
      count(*) filter (where status in ('ok', 'invalid') and not cached) as answered,
      count(*) filter (where status = 'ok' and not cached)
        / nullif(count(*) filter (where status in ('ok', 'invalid') and not cached), 0)::float8 as validity,
      percentile_cont(0.5) within group (order by total_ms) filter (where success and not cached) as p50_ms,
      percentile_cont(0.95) within group (order by total_ms) filter (where success and not cached) as p95_ms
    from llm_calls where ts >= :since and ts < :until and replay_of is null
    group by prompt_key order by prompt_key
    """
)
KEEP = text(
    """
    insert into reports (name, content, made_at, took_ms) values (:name, cast(:content as jsonb), :made_at, :took_ms)
    on conflict (name) do update
    set content = excluded.content, made_at = excluded.made_at, took_ms = excluded.took_ms
    where reports.made_at < excluded.made_at
    """
)
NOW = text("select clock_timestamp()")


class PromptHour(BaseModel):
    """The calls for one prompt key. `validity` and the times are null where the model answered nothing."""

    prompt_key: str
    calls: int
    cached: int
    timeouts: int
    failed: int
    answered: int
    validity: Number | None
    p50_ms: Number | None
    p95_ms: Number | None


class Hour(BaseModel):
    """The calls of the last hour."""

    since: datetime
    until: datetime
    prompts: list[PromptHour]


async def shadow_report(engine: AsyncEngine) -> BaseModel:
    """What `GET /analytics/shadow` answers to whoever says no time."""
    async with engine.connect() as connection:
        until = await now_of(connection)
        return await shadow_of(connection, since=until - USUAL_PAST, until=until, ticker=None)


async def hour_report(engine: AsyncEngine) -> BaseModel:
    """How the model did in the last hour, by prompt."""
    async with engine.connect() as connection:
        until = await now_of(connection)
        rows = (await connection.execute(LAST_HOUR, {"since": until - HOUR, "until": until})).mappings().all()
    return Hour(since=until - HOUR, until=until, prompts=[PromptHour(**row) for row in rows])


async def experiment_report(now: Prompts, key: str, engine: AsyncEngine) -> BaseModel:
    """What `GET /llm/admin/experiments/{key}` answers for the experiment that runs. Raises `NoExperiment`."""
    async with engine.connect() as connection:
        reading = await read_experiment(connection, now, key)
    return await experiment_of(reading)


async def course_report(now: Prompts, key: str, engine: AsyncEngine) -> BaseModel:
    """How the metrics of the experiment that runs went. Raises `NoExperiment`.

    It is reckoned anew from all exposures each time, since outcomes of earlier days come later.
    """
    async with engine.connect() as connection:
        asked, phase = await read_course(connection, now, key)
    return await course_of(asked, phase)


REPORTS: Mapping[str, Report] = {"shadow": shadow_report, "hour": hour_report}


def reports(now: Prompts) -> dict[str, Report]:
    """Every report there is to make, with two for each experiment that runs now."""
    running = [key for key, found in now.in_force.items() if found.experiment is not None]
    return {
        **REPORTS,
        **{f"experiment:{key}": partial(experiment_report, now, key) for key in running},
        **{f"course:{key}": partial(course_report, now, key) for key in running},
    }


async def make_reports(engine: AsyncEngine, reports: Mapping[str, Report]) -> None:
    """Make every report, whatever breaks at another one; the first failure is raised at the end."""
    failures: list[Exception] = []
    for name, make in reports.items():
        try:
            await make_report(engine, name, make)
        except Exception as error:  # noqa: BLE001 - a report may fail in any way, and the others must be made
            log.warning("report_failed", report=name, error=type(error).__name__)
            failures.append(error)
    if failures:
        raise failures[0]


async def make_report(engine: AsyncEngine, name: str, make: Report) -> None:
    """Make one report and keep it in place of the one before."""
    async with engine.connect() as connection:
        made_at = await now_of(connection)
    begun = time.monotonic()
    made = await make(engine)
    took_ms = (time.monotonic() - begun) * 1000
    values = {"name": name, "content": made.model_dump_json(), "made_at": made_at, "took_ms": took_ms}
    async with engine.begin() as connection:
        await connection.execute(KEEP, values)


async def now_of(connection: AsyncConnection) -> datetime:
    """The database's clock, by which verdicts and calls are dated too."""
    return (await connection.execute(NOW)).scalar_one().astimezone(UTC)
