"""What the register of evaluations knows: the runs, how validity went from run to run, and a run's summary and report.

A summary may be long, so lists take a few figures out of it in Postgres and bound how many they look at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

PAGE = 30
MOST_IN_TREND = 50

# cases counts a data set's lines; total counts the questions. A run that has not ended has no summary yet.
_RUN = """
  e.id, e.name, e.asked_by, e.state, e.passed, e.total, e.error, e.created_at, e.made_at,
  e.finished_at, e.plan ->> 'cases' as cases, e.plan -> 'stamp' -> 'model' as model, e.report is not null as has_report,
  coalesce((
    select jsonb_agg(jsonb_build_object('prompt', p.prompt_key, 'version', p.prompt_version, 'hash', p.prompt_hash,
      'passed', p.passed, 'thresholds', p.thresholds) order by p.prompt_key, p.prompt_version)
    from evaluation_prompts p where p.evaluation_id = e.id), '[]') as prompts
"""
RUNS = text(
    f"""
    select {_RUN} from evaluations e
    where cast(:before as timestamptz) is null or e.created_at < :before
    order by e.created_at desc, e.id desc limit :most
    """
)
RUN = text(f"select {_RUN}, e.summary from evaluations e where e.id = :id")
REPORT = text("select report from evaluations where id = :id")
TREND = text(
    """
    select e.id, e.name, e.created_at, one ->> 'prompt' as prompt, one ->> 'version' as version,
      one ->> 'hash' as hash,
      (one #>> '{figures,validity,value}')::float8 as value, (one #>> '{figures,validity,low}')::float8 as low,
      (one #>> '{figures,validity,high}')::float8 as high, (one #>> '{figures,validity,n}')::bigint as n
    from (
      select id, name, created_at, summary from evaluations
      where summary is not null and state = 'done' order by created_at desc limit :most
    ) e cross join lateral jsonb_array_elements(e.summary -> 'versions') as one
    where one #>> '{figures,validity,value}' is not null
    order by e.created_at, e.id, prompt, version
    """
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A version that a run judged; `passed` is None where no threshold spoke of it."""

    prompt: str
    version: str
    hash: str
    passed: bool | None
    thresholds: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the register has it. `summary` is there for one that was asked for alone and has ended.

    It began at `made_at`, and has been known here since `created_at`: a run may be registered when it has ended.
    """

    id: UUID
    name: str
    asked_by: str
    state: str
    passed: bool | None
    total: int
    error: str | None
    created_at: datetime
    made_at: datetime
    finished_at: datetime | None
    cases: int | None
    model: str
    has_report: bool
    prompts: tuple[Judged, ...]
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """The validity of one version in one run, with its 95 % interval."""

    id: UUID
    name: str
    at: datetime
    prompt: str
    version: str
    hash: str
    value: float
    low: float | None
    high: float | None
    n: int | None


async def runs(connection: AsyncConnection, *, before: datetime | None = None) -> list[Run]:
    """A page of runs and one more, newest first."""
    found = await connection.execute(RUNS, {"before": before, "most": PAGE + 1})
    return [_run(dict(row)) for row in found.mappings()]


async def run(connection: AsyncConnection, run_id: UUID) -> Run | None:
    """One run with its summary; None where there is none."""
    row = (await connection.execute(RUN, {"id": run_id})).mappings().first()
    return None if row is None else _run(dict(row))


async def trend(connection: AsyncConnection) -> list[Point]:
    """Validity in the latest finished runs, oldest first."""
    found = await connection.execute(TREND, {"most": MOST_IN_TREND})
    return [
        Point(**{("at" if name == "created_at" else name): value for name, value in row.items()})
        for row in found.mappings()
    ]


async def report(connection: AsyncConnection, run_id: UUID) -> bytes | None:
    """The report as it is stored: HTML, gzipped."""
    return await connection.scalar(REPORT, {"id": run_id})


def model_words(stamp: Mapping[str, Any] | None) -> str:
    """The model that a plan's stamp names, with its dialect and its server's version or file."""
    if not stamp:
        return "unknown"
    server: Mapping[str, Any] = stamp.get("server") or {}
    said = (stamp.get("name"), stamp.get("dialect"), server.get("version") or server.get("model_file"))
    return " ".join(str(each) for each in said if each) or "unknown"


def _run(row: dict[str, Any]) -> Run:
    row["cases"] = None if row["cases"] is None else int(row["cases"])
    row["model"] = model_words(row["model"])
    row["prompts"] = tuple(Judged(**one) for one in row["prompts"])
    return Run(**row)
