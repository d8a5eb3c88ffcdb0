"""The reports that a job makes for the console, against a real database."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from services.jobs.main import periodic_jobs
from services.jobs.reports import REPORTS, make_reports, reports
from services.jobs.retention import RetentionSettings
from tests.integration.exposure_tables import insert
from tests.integration.test_analytics_shadow import entered, fill, http, shadow
from tests.unit.exposure_cases import CANDIDATE, CONTROL
from tests.unit.test_exposures_report import planted

__all__ = ["http"]

REGISTRY = Registry.load_unlocked(Path("configs/llm_prompts.yaml"))

PARTITION = text("select ensure_partition('llm_calls', 'day', now() - make_interval(mins => :minutes_ago))")
CALL = text(
    """
    insert into llm_calls (ts, id, service, prompt_key, prompt_version, prompt_hash, upstream, model, success, status,
      cached, total_ms, replay_of)
    values (now() - make_interval(mins => :minutes_ago), :id, 'forecast', :key, '1.0.0', 'h', 'lexi', 'Lexi',
      :status = 'ok', :status, :cached, :ms, :replay_of)
    """
)


async def called(engine: AsyncEngine, key: str, status: str = "ok", *, ms: float = 100, **more: Any) -> None:
    row = {"cached": False, "minutes_ago": 5, "replay_of": None, **more}
    async with engine.begin() as connection:
        await connection.execute(PARTITION, row)
        await connection.execute(CALL, {**row, "id": uuid4(), "key": key, "status": status, "ms": ms})


async def kept(engine: AsyncEngine) -> dict[str, Any]:
    async with engine.connect() as connection:
        found = await connection.execute(text("select name, content from reports"))
        return {row.name: row.content for row in found}


async def test_the_report_on_shadow_is_what_the_route_answers(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await fill(engine, days=10)
    await entered(engine, "RULE_DENY", "LIMIT_QTY", day=3, realised=50, verdict="deny")
    await make_reports(engine, REPORTS)
    made = (await kept(engine))["shadow"]
    assert made["enough_data"] is True
    assert made == await shadow(http, since=made["since"], until=made["until"])


async def test_the_hour_counts_calls_by_prompt(engine: AsyncEngine) -> None:
    for ms in (100, 200, 300):
        await called(engine, "policy", ms=ms)
    await called(engine, "policy", "invalid", ms=9000)
    await called(engine, "policy", ms=1, cached=True)
    await called(engine, "policy", "timed_out", ms=20_000)
    await called(engine, "policy", "failed")
    await called(engine, "policy", minutes_ago=61)
    await called(engine, "policy", replay_of=uuid4())
    await called(engine, "rationale", "timed_out")
    await make_reports(engine, REPORTS)
    policy, rationale = (await kept(engine))["hour"]["prompts"]
    assert policy == {
        "service": "forecast", "prompt_key": "policy", "calls": 7, "cached": 1, "timeouts": 1, "failed": 1,
        "answered": 4, "validity": 0.75, "p50_ms": 200, "p95_ms": 290,
    }  # fmt: skip
    assert (rationale["calls"], rationale["timeouts"], rationale["validity"], rationale["p50_ms"]) == (1, 1, None, None)


async def test_one_that_breaks_keeps_no_other_from_being_made(engine: AsyncEngine) -> None:
    async def broken(_engine: AsyncEngine) -> BaseModel:
        raise ArithmeticError("no such sum")

    with pytest.raises(ArithmeticError):
        await make_reports(engine, {"broken": broken, **REPORTS})
    assert set(await kept(engine)) == set(REPORTS)


async def test_the_newest_takes_the_place_of_the_one_before(engine: AsyncEngine) -> None:
    await make_reports(engine, REPORTS)
    await called(engine, "policy")
    await periodic_jobs(engine, RetentionSettings(), prompts=Prompts.build(REGISTRY))["reports"].work()
    assert [each["calls"] for each in (await kept(engine))["hour"]["prompts"]] == [1]


async def test_each_experiment_that_runs_has_a_report(engine: AsyncEngine) -> None:
    prompts = Prompts.build(REGISTRY, f"policy:{CONTROL},{CANDIDATE}")
    running = prompts.in_force["policy"].experiment
    assert running is not None
    rows = planted(10)
    await insert(engine, rows, phase=running.phase)
    await make_reports(engine, reports(prompts))
    found = await kept(engine)
    assert set(found) == {*REPORTS, "experiment:policy", "course:policy"}
    made = found["experiment:policy"]
    assert (made["key"], made["state"], made["phase"]) == ("policy", "running", running.phase)
    assert sum(arm["exposures"] for arm in made["arms"]) == len(rows)


async def test_the_course_of_an_experiment_ends_where_its_report_is(engine: AsyncEngine) -> None:
    prompts = Prompts.build(REGISTRY, f"policy:{CONTROL},{CANDIDATE}")
    running = prompts.in_force["policy"].experiment
    assert running is not None
    await insert(engine, planted(30), phase=running.phase)
    await make_reports(engine, reports(prompts))
    found = await kept(engine)
    course, made = found["course:policy"], found["experiment:policy"]
    assert (course["key"], course["phase"], course["control"]) == ("policy", running.phase, CONTROL)
    ends = {each["metric"]: each["points"][-1] for each in course["courses"] if each["points"]}
    beside = {metric["name"]: metric["differences"][0] for metric in made["metrics"]}
    assert len(ends) > 3
    for name, end in ends.items():
        assert (end["value"], end["low"], end["high"]) == tuple(beside[name][part] for part in ("value", "low", "high"))
    days = [point["day"] for point in course["courses"][0]["points"]]
    assert days == sorted(set(days))
    assert len(days) == 30
    known = [point["low"] is not None for point in course["courses"][0]["points"]]
    assert known == sorted(known), "an interval comes with days enough and does not go away again"
    assert (known[0], known[-1]) == (False, True)


async def aged(engine: AsyncEngine, name: str, *, hours: int) -> None:
    """As if a report had been made so long ago."""
    async with engine.begin() as connection:
        older = text("update reports set made_at = made_at - make_interval(hours => :hours) where name = :name")
        await connection.execute(older, {"name": name, "hours": hours})


async def test_an_experiment_that_has_ended_keeps_its_reports_and_they_take_late_outcomes(engine: AsyncEngine) -> None:
    running = Prompts.build(REGISTRY, f"policy:{CONTROL},{CANDIDATE}")
    ended = Prompts.build(REGISTRY)
    experiment = running.in_force["policy"].experiment
    assert experiment is not None
    names = ("experiment:policy", "course:policy")
    await insert(engine, planted(20), phase=experiment.phase)
    async with engine.begin() as connection:
        await connection.execute(text("update exposures set assigned_at = now(), judged_at = now()"))
    await make_reports(engine, reports(running))
    last = await kept(engine)
    await make_reports(engine, reports(ended))
    stayed = await kept(engine)
    assert stayed["experiment:policy"]["state"] == "running", "it was made within the hour"
    for name in names:
        await aged(engine, name, hours=2)
    await make_reports(engine, reports(ended))
    again = await kept(engine)
    assert (again["experiment:policy"]["state"], again["experiment:policy"]["phase"]) == ("ended", experiment.phase)
    assert [again[name]["phase"] for name in names] == [last[name]["phase"] for name in names]
    async with engine.begin() as connection:
        await connection.execute(text("delete from exposures"))
    for name in names:
        await aged(engine, name, hours=2)
    await make_reports(engine, reports(ended))
    gone = await kept(engine)
    assert [gone[name] for name in names] == [again[name] for name in names], "what is erased takes no report with it"


async def test_one_that_a_guardrail_ended_within_a_minute_is_reported_on(engine: AsyncEngine) -> None:
    phase = "activation-7"
    await make_reports(engine, reports(Prompts.build(REGISTRY)))
    assert set(await kept(engine)) == set(REPORTS)
    await insert(engine, planted(10), phase=phase)
    async with engine.begin() as connection:
        await connection.execute(text("update exposures set assigned_at = now(), judged_at = now()"))
    await make_reports(engine, reports(Prompts.build(REGISTRY)))
    found = await kept(engine)
    made = found["experiment:policy"]
    assert (made["state"], made["phase"], found["course:policy"]["phase"]) == ("ended", phase, phase)
    assert sum(arm["exposures"] for arm in made["arms"]) == len(planted(10))
