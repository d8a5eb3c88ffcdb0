"""Reports that people look at again and again, made here so that no page has to compute them: the newest of each name.

A report is a row of `reports`; who reads it sees when it was made.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol, TypeAlias

import structlog
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.exposures.answer import experiment_of, read_experiment
from libs.exposures.course_report import course_of, read_course
from libs.exposures.phases import NoExperiment
from libs.json_numbers import Number
from libs.llm.prompts import Prompts
from libs.shadow import USUAL_PAST, shadow_of

HOUR = timedelta(hours=1)
KEPT_UP = timedelta(days=7)
"""How long after its last answer the reports of an experiment that has ended are made again, for late outcomes."""

log = structlog.get_logger(__name__)

Report: TypeAlias = Callable[[AsyncEngine], Awaitable[BaseModel | None]]
"""What makes a report; None leaves the one before in its place."""

# Validity is the share of valid answers among the answers: what was not answered in time says nothing about it. Answers
# from the cache are left out of it, and of the times. Replays are not the desk's own work.
LAST_HOUR = text(
    """
    select service, prompt_key, count(*) as calls, count(*) filter (where cached) as cached,
      count(*) filter (where status = 'timed_out') as timeouts,
      count(*) filter (where status in ('failed', 'cancelled')) as failed,
      count(*) filter (where status in ('ok', 'invalid') and not cached) as answered,
      count(*) filter (where status = 'ok' and not cached)
        / nullif(count(*) filter (where status in ('ok', 'invalid') and not cached), 0)::float8 as validity,
      percentile_cont(0.5) within group (order by total_ms) filter (where success and not cached) as p50_ms,
      percentile_cont(0.95) within group (order by total_ms) filter (where success and not cached) as p95_ms
    from llm_calls where ts >= :since and ts < :until and replay_of is null
    group by service, prompt_key order by prompt_key, service
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
# The phase that ended last, where its report is due. A guardrail may end one within seconds, before any report on it is
# made: exposures of the last hour name such a one. What was reported on changes with its outcomes alone, so that once
# an hour is enough for it.
ENDED = text(
    """
    select coalesce(
      (
        select lately.phase from (
          select phase from exposures where key = :key and assigned_at > clock_timestamp() - cast(:hour as interval)
          order by assigned_at desc limit 1
        ) lately
        where lately.phase is distinct from (select content ->> 'phase' from reports where name = :name)
      ),
      (
        select own.content ->> 'phase' from reports own
        join reports experiment on experiment.name = 'experiment:' || :key
        where own.name = :name and own.made_at < clock_timestamp() - cast(:hour as interval)
          and (experiment.content ->> 'judged_at')::timestamptz > clock_timestamp() - cast(:kept_up as interval)
      )
    )
    """
)
NOW = text("select clock_timestamp()")


class PromptHour(BaseModel):
    """The calls of a service for a prompt key. `validity` and the times are null where the model answered nothing."""

    service: str
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


async def experiment_report(now: Prompts, key: str, engine: AsyncEngine, phase: str | None = None) -> BaseModel:
    """What `GET /llm/admin/experiments/{key}` answers, for the experiment that runs or a phase that has ended.

    Raises `NoExperiment`.
    """
    async with engine.connect() as connection:
        reading = await read_experiment(connection, now, key, phase)
    return await experiment_of(reading)


async def course_report(now: Prompts, key: str, engine: AsyncEngine, phase: str | None = None) -> BaseModel:
    """How the metrics went, of the experiment that runs or of a phase that has ended. Raises `NoExperiment`.

    It is reckoned anew from all exposures each time, since outcomes of earlier days come later.
    """
    async with engine.connect() as connection:
        asked, found = await read_course(connection, now, key, phase)
    return await course_of(asked, found)


async def ended_report(now: Prompts, key: str, kind: str, engine: AsyncEngine) -> BaseModel | None:
    """The report that is kept of a key's last experiment, made again now that it has ended; None where that is idle."""
    asked = {"key": key, "name": f"{kind}:{key}", "hour": HOUR, "kept_up": KEPT_UP}
    async with engine.connect() as connection:
        phase = await connection.scalar(ENDED, asked)
    if phase is None:
        return None
    try:
        return await OF_EXPERIMENTS[kind](now, key, engine, phase)
    except NoExperiment:
        return None  # its exposures are older than they are kept: the report stays as it was


class OfExperiment(Protocol):
    """What makes a report on an experiment: the one of a phase, or of what runs."""

    async def __call__(self, now: Prompts, key: str, engine: AsyncEngine, phase: str | None = None) -> BaseModel:
        """Make it. Raises `NoExperiment`."""
        ...


OF_EXPERIMENTS: Mapping[str, OfExperiment] = {
    "experiment": experiment_report,
    "course": course_report,
}
REPORTS: Mapping[str, Report] = {"shadow": shadow_report, "hour": hour_report}


def reports(now: Prompts) -> dict[str, Report]:
    """Every report there is to make, with two for each experiment that runs now or ended lately."""
    made = dict(REPORTS)
    for kind, report in OF_EXPERIMENTS.items():
        for key, found in now.in_force.items():
            runs = found.experiment is not None
            name = f"{kind}:{key}"
            made[name] = partial(report, now, key) if runs else partial(ended_report, now, key, kind)
    return made


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
    """Make one report and keep it in place of the one before, unless that one is to stay."""
    async with engine.connect() as connection:
        made_at = await now_of(connection)
    begun = time.monotonic()
    made = await make(engine)
    if made is None:
        return
    took_ms = (time.monotonic() - begun) * 1000
    values = {"name": name, "content": made.model_dump_json(), "made_at": made_at, "took_ms": took_ms}
    async with engine.begin() as connection:
        await connection.execute(KEEP, values)


async def now_of(connection: AsyncConnection) -> datetime:
    """The database's clock, by which verdicts and calls are dated too."""
    return (await connection.execute(NOW)).scalar_one().astimezone(UTC)
