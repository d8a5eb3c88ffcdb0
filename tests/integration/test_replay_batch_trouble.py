"""A batch replay whose model, version or master goes away: what it waits for, what it gives up, and what it says."""

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.replay.batch.rows import end
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.api_app import until
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


async def test_a_model_that_is_away_makes_it_wait_and_fails_nothing(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(40)])
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(ALLOWS), delay_s=0.02) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        going = asyncio.create_task(replays.step())
        await until_stored(engine, batch, 8)
        await fake.stop()
        waiting = await until(lambda: now_of(engine, batch), lambda now: now.error is not None)
        assert (waiting.state, str(waiting.error)[:23]) == ("running", "waiting for the model: ")
        stored = len(await replays_of(engine, batch))
        await fake.start()
        assert await going is True
    assert stored < 40
    done = await now_of(engine, batch)
    assert (done.state, done.error) == ("done", None)
    rows = await replays_of(engine, batch)
    assert len(rows) == 40
    assert {row["status"] for row in rows} == {"ok"}


async def test_a_model_that_stays_away_ends_it_and_keeps_what_was_answered(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL")])
    batch = await asked(engine)
    async with FakeEngine() as fake:
        nowhere = fake.base_url
    async with working(database_url, nowhere, tmp_path, monkeypatch, give_up_s=0.3) as replays:
        assert await replays.step() is True
    failed = await now_of(engine, batch)
    assert failed.state == "failed"
    assert "Ask for the batch again once the model answers" in str(failed.error)


async def test_a_decision_that_alone_gets_no_answer_is_given_up_and_named(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("STUCK", decision=ALLOWS), *(Past(f"T{number:02d}") for number in range(30))])
    batch = await asked(engine)
    said = by_ticker({"STUCK": Reply("", fault=Fault.STATUS)})
    async with (
        FakeEngine(reply=said) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch, last_few_s=0.5) as replays,
    ):
        assert await replays.step() is True
    done = await now_of(engine, batch)
    assert done.state == "done"
    rows = {row["ticker"]: row for row in await replays_of(engine, batch)}
    assert len(rows) == 31
    assert (rows["STUCK"]["status"], rows["STUCK"]["flip"]) == ("unavailable", None)
    assert done.report is not None
    assert done.report["counts"]["failed"] == 1
    assert "1 could not be asked and count nowhere." in done.report["sentence"]


async def test_a_cancelled_batch_stops_asking(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(200)])
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(ALLOWS), delay_s=0.05) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        going = asyncio.create_task(replays.step())
        await until_stored(engine, batch, 1)
        async with engine.begin() as connection:
            assert await end(connection, batch.id, "cancelled") is True
            assert await end(connection, batch.id, "cancelled") is False
        assert await going is True
        assert len(fake.requests) < 200
        assert fake.active == 0
    ended = await now_of(engine, batch)
    assert (ended.state, ended.report) == ("cancelled", None)


async def test_two_processes_never_work_on_the_same_batch_and_share_what_waits(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(30)])
    first, second = await asked(engine), await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(DENIES), delay_s=0.03) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as one,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as other,
    ):
        taken = await asyncio.gather(one.step(), other.step())
        assert taken == [True, True]
        assert await one.step() is False
        assert len(fake.requests) == 60
    for batch in (first, second):
        assert (await now_of(engine, batch)).state == "done"
        assert len(await replays_of(engine, batch)) == 30


async def test_a_version_that_changed_meanwhile_fails_the_batch_and_says_so(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL")])
    edited, gone = await asked(engine), await asked(engine)
    async with engine.begin() as connection:
        await connection.execute(
            text("update replay_batches set prompt_hash = repeat('0', 64) where id = :id"), {"id": edited.id}
        )
        await connection.execute(
            text("update replay_batches set prompt_version = '3.0.0' where id = :id"), {"id": gone.id}
        )
    async with (
        FakeEngine(reply=json.dumps(ALLOWS)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch, version_s=0.2) as replays,
    ):
        assert await replays.step() is True
        assert await replays.step() is True
        assert fake.requests == []
    assert "policy 1.1.0 does not say any more what it said" in str((await now_of(engine, edited)).error)
    ended = await now_of(engine, gone)
    assert (ended.state, str(ended.error)[:52]) == (
        "failed",
        "policy 3.0.0 is not in the prompts' file any more; p",
    )


async def test_an_answer_of_another_model_counts_for_nothing(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL")])
    batch = await asked(engine)
    async with (
        FakeEngine() as fake,
        FakeEngine(reply=json.dumps(ALLOWS), model="Other") as other,
    ):
        await fake.stop()
        upstreams = tmp_path / "fallback.yaml"
        upstreams.write_text(
            "upstreams:\n"
            "  - {name: lexi, dialect: vllm, slots: 8, shares: {jobs: 4}, fallback: [other]}\n"
            f"  - {{name: other, model: Other, base_url: '{other.base_url}',\n"
            "     dialect: vllm, slots: 8, shares: {jobs: 4}}\n"
        )
        async with working(
            database_url, fake.base_url, tmp_path, monkeypatch, upstreams=upstreams, give_up_s=0.5
        ) as replays:
            assert await replays.step() is True
        assert other.requests
    failed = await now_of(engine, batch)
    assert failed.state == "failed"
    assert "Other answered in its place, which says nothing about Lexi" in str(failed.error)
    assert await replays_of(engine, batch) == []


async def test_a_prompt_that_never_fits_is_named_and_not_asked_for_ever(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL"), Past("MSFT")])
    batch = await asked(engine)
    monkeypatch.setenv("LLM_MAX_TOKENS", "300")
    async with (
        FakeEngine(reply=json.dumps(ALLOWS)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
        assert fake.requests == []
    done = await now_of(engine, batch)
    assert done.report is not None
    assert (done.state, done.report["counts"]["failed"]) == ("failed", 2)
    assert str(done.error).startswith(
        "None of 2 decisions was answered by policy 1.1.0: there is nothing to compare. "
        "The usual reason: prompt_too_long: "
    )
    rows = await replays_of(engine, batch)
    assert all(row["error"].startswith("prompt_too_long: ") and row["flip"] is None for row in rows)


async def test_a_period_without_decisions_is_no_trial_that_was_passed(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(ALLOWS)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
    ended = await now_of(engine, batch)
    assert (ended.state, ended.total) == ("failed", 0)
    assert ended.error == "No decision was written in the period: there is nothing to ask again."
