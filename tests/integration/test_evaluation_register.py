"""The register of evaluations on a real Postgres: what promotion and people find there."""

import gzip
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Plan
from libs.evaluation.sharing.register import EvaluationState, Evidence, Registered, history, latest_for, register
from libs.llm.commands.evidence import FinishedEvaluation, finished_evaluation
from tests.integration.evaluation_sharing_cases import PROMPTS, handed_out, pinned, queued_shards, shared_plan, value

OLD, NEW = pinned(), pinned(version="1.1.0")
PAGE = "<!doctype html><title>Evaluation</title>"


def threshold(version: str | None, *, passed: bool, prompt: str | None = "policy") -> dict[str, Any]:
    sentence = f"validity of {prompt} {version} is 0.97, asked for at least 0.95"
    return {
        "name": "validity",
        "asked": 0.95,
        "prompt": prompt,
        "version": version,
        "passed": passed,
        "sentence": sentence,
    }


def summary_of(*thresholds: Mapping[str, Any], missing: int = 0) -> dict[str, Any]:
    passed = all(one["passed"] for one in thresholds) if thresholds else None
    run = {"complete": missing == 0, "missing": missing}
    return {"v": 1, "run": run, "thresholds": list(thresholds), "passed": passed, "worst": [{"text": "a\x00b"}]}


def plan_of_two(**changes: Any) -> Plan:
    return shared_plan(10, versions=(OLD, NEW), workers=0, **changes)


async def registered(engine: AsyncEngine, plan: Plan, summary: Mapping[str, Any], page: str = PAGE) -> EvaluationState:
    async with engine.begin() as connection:
        return await register(connection, plan=plan, summary=summary, report_html=page, asked_by="ann")


async def evidence(engine: AsyncEngine, prompt_hash: str, key: str = "policy") -> Evidence | None:
    async with engine.connect() as connection:
        return await latest_for(connection, key, prompt_hash=prompt_hash)


async def found_by_promotion(engine: AsyncEngine, version: str) -> FinishedEvaluation | None:
    async with engine.connect() as connection:
        return await finished_evaluation(connection, PROMPTS.version("policy", version))


async def past(engine: AsyncEngine, limit: int = 10) -> list[Registered]:
    async with engine.connect() as connection:
        return await history(connection, limit=limit)


async def test_each_version_has_its_own_result(engine: AsyncEngine) -> None:
    plan = plan_of_two()
    summary = summary_of(threshold("1.0.0", passed=True), threshold("1.1.0", passed=False))
    assert await registered(engine, plan, summary) == "done"
    good, bad = await evidence(engine, OLD.hash), await evidence(engine, NEW.hash)
    assert good is not None
    assert bad is not None
    assert (good.passed, good.version, good.state, good.name, good.asked_by) == (True, "1.0.0", "done", "test", "ann")
    assert (bad.passed, bad.id) == (False, plan.evaluation_id)
    assert [one["sentence"] for one in bad.thresholds] == [threshold("1.1.0", passed=False)["sentence"]]
    assert await evidence(engine, OLD.hash, "rationale") is None
    assert await evidence(engine, "0" * 64) is None


async def test_what_was_asked_of_all_counts_for_each_and_nothing_asked_is_no_pass(engine: AsyncEngine) -> None:
    await registered(engine, plan_of_two(), summary_of(threshold("1.0.0", passed=True), threshold(None, passed=False)))
    assert [one.passed for one in (await past(engine))[0].prompts] == [False, False]
    await registered(engine, plan_of_two(), summary_of(threshold("1.0.0", passed=True)))
    assert [one.passed for one in (await past(engine))[0].prompts] == [True, None]
    await registered(engine, plan_of_two(), summary_of())
    newest = (await past(engine))[0]
    assert (newest.passed, [one.passed for one in newest.prompts]) == (None, [None, None])


async def test_the_same_again_changes_nothing_and_a_resumed_run_replaces_its_result(engine: AsyncEngine) -> None:
    plan = plan_of_two()
    assert await registered(engine, plan, summary_of(threshold("1.0.0", passed=True), missing=3)) == "failed"
    first = (await past(engine))[0]
    assert (first.state, first.passed) == ("failed", None)
    assert first.error == "3 of 20 items have no row; resume it"
    assert [one.passed for one in first.prompts] == [None, None]
    for _ in range(2):
        assert await registered(engine, plan, summary_of(threshold("1.0.0", passed=True)), page="<p>later") == "done"
    (only,) = await past(engine)
    assert (only.state, only.passed, only.error, only.total) == ("done", True, None, 20)
    assert only.created_at == first.created_at
    report = await value(engine, "select report from evaluations")
    assert gzip.decompress(bytes(report)).decode() == "<p>later"
    assert await value(engine, "select summary -> 'worst' -> 0 ->> 'text' from evaluations") == "a\ufffdb"
    assert await value(engine, "select plan ->> 'seed' from evaluations") == "7"


async def test_the_latest_evaluation_of_a_content_counts_under_any_number(engine: AsyncEngine) -> None:
    await registered(engine, plan_of_two(), summary_of(threshold("1.0.0", passed=True)))
    renumbered = replace(OLD, version="2.0.0")
    later = shared_plan(10, versions=(renumbered,), workers=0, evaluation_id=uuid4())
    await registered(engine, later, summary_of(threshold("2.0.0", passed=False)))
    found = await evidence(engine, OLD.hash)
    assert found is not None
    assert (found.id, found.version, found.passed) == (later.evaluation_id, "2.0.0", False)
    assert [one.id for one in await past(engine, limit=1)] == [later.evaluation_id]


async def test_an_older_evaluation_that_is_reported_again_does_not_outdo_a_later_one(engine: AsyncEngine) -> None:
    """The newest is the one that was begun last, however often the other is registered, or how late."""
    monday = datetime(2026, 3, 2, 9, tzinfo=UTC)
    old, new = (plan_of_two(evaluation_id=uuid4(), made_at=monday + timedelta(days=days)) for days in (0, 1))
    good, bad = summary_of(threshold("1.1.0", passed=True)), summary_of(threshold("1.1.0", passed=False))
    for plan, summary in ((old, good), (new, bad), (old, good)):
        await registered(engine, plan, summary)
        newest, gate = await evidence(engine, NEW.hash), await found_by_promotion(engine, "1.1.0")
        assert newest is not None
        assert gate is not None
        assert newest.id == gate.id
    assert (newest.id, newest.passed, gate.passed) == (new.evaluation_id, False, False)
    await handed_out(engine, replace(old, workers=2))
    newest, gate = await evidence(engine, NEW.hash), await found_by_promotion(engine, "1.1.0")
    assert newest is not None
    assert gate is not None
    assert (newest.id, gate.id) == (new.evaluation_id, new.evaluation_id), "nor by its errors asked anew"


async def test_what_is_registered_again_ended_when_it_ended(engine: AsyncEngine) -> None:
    plan, summary = plan_of_two(), summary_of(threshold("1.0.0", passed=True))
    await registered(engine, plan, summary)
    (before,) = await past(engine)
    await registered(engine, plan, summary)
    (after,) = await past(engine)
    assert before.finished_at == after.finished_at


async def test_a_clock_that_is_fast_makes_nothing_the_newest_for_ever(engine: AsyncEngine) -> None:
    fast = plan_of_two(made_at=datetime.now(UTC) + timedelta(days=365))
    await registered(engine, fast, summary_of(threshold("1.1.0", passed=True)))
    later = plan_of_two(made_at=datetime.now(UTC) + timedelta(days=1))
    await registered(engine, later, summary_of(threshold("1.1.0", passed=False)))
    found = await evidence(engine, NEW.hash)
    assert found is not None
    assert (found.id, found.passed) == (later.evaluation_id, False)


async def test_a_shared_evaluation_stands_there_as_running_and_leaves_nothing_behind(engine: AsyncEngine) -> None:
    plan = shared_plan(10, versions=(OLD,))
    await registered(engine, shared_plan(10, versions=(OLD,), workers=0), summary_of(threshold("1.0.0", passed=True)))
    await handed_out(engine, plan)
    found = await evidence(engine, OLD.hash)
    assert found is not None
    assert (found.id, found.state, found.passed) == (plan.evaluation_id, "running", None)
    assert await registered(engine, plan, summary_of(threshold("1.0.0", passed=True), missing=4)) == "running"
    assert (await past(engine))[0].state == "running"
    assert await value(engine, "select count(*) from evaluation_shards") == 1
    assert await registered(engine, plan, summary_of(threshold("1.0.0", passed=True))) == "done"
    assert await value(engine, "select count(*) from evaluation_shards") == 0
    assert len(await queued_shards(engine)) == 1
    async with engine.begin() as connection:
        await connection.execute(text("delete from pgqueuer"))
    assert (await past(engine))[0].passed is True
