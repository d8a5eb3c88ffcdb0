"""A period's decisions through another version, on a real database, against a fake engine at the wire."""

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.replay.batch.rows import BatchRefused, progress
from tests.fakes.engine import FakeEngine
from tests.integration.replay_batch_cases import (
    ALLOWS,
    DENIES,
    Past,
    asked,
    by_ticker,
    now_of,
    remember,
    replays_of,
    until_stored,
    working,
)


async def test_every_decision_is_asked_again_and_the_report_says_what_turned(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = [
        Past("OPEN", day=0, made=0.02),
        Past("OPEN", day=1, made=-0.01),
        Past("IDLE", coverage_pct=10.0),
        Past("SHUT", decision=ALLOWS, side="sell", made=0.03),
        Past("STAY"),
        Past("BAD", decision=None),
        Past("AWAY", decision=None, status="unavailable"),
    ]
    await remember(engine, past)
    batch = await asked(engine)
    said = by_ticker({"OPEN": ALLOWS, "IDLE": ALLOWS, "SHUT": DENIES, "BAD": "no JSON"})
    async with (
        FakeEngine(reply=said) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
        assert await replays.step() is False
    done = await now_of(engine, batch)
    assert (done.state, done.total, done.error) == ("done", 6, None)
    rows = {(row["ticker"], row["as_of"]): row for row in await replays_of(engine, batch)}
    assert len(rows) == 6
    assert ("AWAY", past[6].as_of) not in rows
    row = rows["OPEN", past[0].as_of]
    assert (row["flip"], row["status"], row["source"]) == ("deny_to_allow", "ok", "model")
    assert (row["call_id"], row["forecast_id"], row["asked_by"]) == (past[0].call_id, past[0].id, "ann")
    assert row["before"]["decision"]["reasons"] == ["EARNINGS"]
    assert row["before"]["spent"] == {"total_ms": 100.0, "tokens_in": 400, "tokens_out": 20}
    assert row["after"]["decision"]["allow"] is True
    report = done.report
    assert report is not None
    assert report["flips"] == {
        "deny_to_allow": 3,
        "deny_to_allow_acting": 2,
        "allow_to_deny": 1,
        "allow_to_deny_acting": 1,
        "unchanged": 2,
    }
    assert [one["ticker"] for one in report["flipped"]] == ["OPEN", "OPEN", "IDLE", "SHUT"]
    assert report["flipped"][0]["words"] == "OPEN 2012-11-20 buy 1d: deny (EARNINGS) -> allow; made +2.00 %"
    assert report["flipped"][2]["words"].endswith("the rules deny it anyway; no outcome yet")
    assert report["flipped"][3]["made"] == pytest.approx(-0.03)
    assert report["validity"]["before"]["hits"] == report["validity"]["after"]["hits"] == 5
    assert report["made"]["deny_to_allow"]["mean"]["value"] == pytest.approx(0.005)
    assert report["counts"] == {"total": 6, "answered": 6, "failed": 0, "same_answer": 1}


async def test_it_asks_at_the_lowest_priority_past_the_cache_and_says_which_call_it_repeats(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = [Past(f"T{number:02d}") for number in range(12)]
    await remember(engine, past)
    async with (
        FakeEngine(reply=json.dumps(DENIES), delay_s=0.05) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch, share=3) as replays,
    ):
        first, second = await asked(engine), await asked(engine)
        assert await replays.step() is True
        assert await replays.step() is True
        assert fake.peak == 3
        assert len(fake.requests) == 24
        assert {body["priority"] for body in fake.requests} == {9}
    assert {row["new_call_id"] for row in await replays_of(engine, first)}.isdisjoint(
        {row["new_call_id"] for row in await replays_of(engine, second)}
    )
    async with engine.connect() as connection:
        kept = await connection.scalar(text("select count(*) from llm_cache"))
        calls = (
            await connection.execute(
                text("select id, replay_of, arm, service, prompt_version from llm_calls where replay_of is not null")
            )
        ).all()
    assert kept == 0
    assert {(call.arm, call.service, call.prompt_version) for call in calls} == {("", "jobs", "1.1.0")}
    assert {call.replay_of for call in calls} == {one.call_id for one in past}


async def test_nothing_of_a_forecast_changes(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL"), Past("MSFT")])
    whole = text("select md5(string_agg(cast(f as text), '|' order by id)) from forecasts f")
    async with engine.connect() as connection:
        before = await connection.scalar(whole)
    await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(ALLOWS)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
    async with engine.connect() as connection:
        assert await connection.scalar(whole) == before
        assert await connection.scalar(text("select count(*) from exposures")) == 0


async def test_a_limit_takes_the_same_sample_each_time(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(20)])
    async with (
        FakeEngine(reply=json.dumps(DENIES)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        first, second = await asked(engine, most=5), await asked(engine, most=5)
        assert await replays.step() is True
        assert await replays.step() is True
    samples = [{row["ticker"] for row in await replays_of(engine, batch)} for batch in (first, second)]
    assert len(samples[0]) == 5
    assert samples[0] == samples[1]


async def test_a_rationale_is_compared_word_for_word_and_by_its_numbers(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("SAME"), Past("OTHER")])
    batch = await asked(engine, key="rationale")
    said = by_ticker({"SAME": "It rises by 77 %.", "OTHER": "For: momentum."})
    async with (
        FakeEngine(reply=said) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
    report = (await now_of(engine, batch)).report
    assert report is not None
    assert report["sentence"].startswith("Of 2 answers through rationale 1.1.0, 1 stay word for word.")
    assert report["ungrounded"]["before"]["hits"] == 2
    assert report["ungrounded"]["after"]["hits"] == 1
    assert report["flips"]["deny_to_allow"] == 0


async def test_progress_counts_and_says_how_long_the_rest_takes(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(60)])
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(DENIES), delay_s=0.05) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        async with engine.connect() as connection:
            waiting = await progress(connection, batch)
        assert (waiting.done, waiting.failed, waiting.eta_s) == (0, 0, None)
        going = asyncio.create_task(replays.step())
        await until_stored(engine, batch, 10)
        async with engine.connect() as connection:
            now = await now_of(engine, batch)
            halfway = await progress(connection, now)
        assert now.total == 60
        assert 10 <= halfway.done < 60
        assert halfway.eta_s is not None
        assert halfway.eta_s > 0
        assert await going is True


async def test_what_makes_no_sense_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(BatchRefused, match="only policy and rationale are kept with each forecast, so not 'health'"):
        await asked(engine, key="health", version="1.0.0")
    with pytest.raises(BatchRefused, match=r"policy has no version '9.9.9', only 1.0.0, 1.1.0"):
        await asked(engine, version="9.9.9")
    first = await asked(engine)
    with pytest.raises(BatchRefused, match="since: must lie before until"):
        await asked(engine, since=first.until, until=first.until)
