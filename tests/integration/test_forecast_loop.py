"""The loop over a file of bars, a real database and an engine at the wire."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.forecast.feed.file import FileFeed
from services.forecast.feed.replay import ReplayFeed
from services.forecast.feed.types import FeedError
from services.forecast.model import Forecaster
from tests.fakes.engine import FakeEngine, Fault
from tests.integration.forecast_loop import (
    Loop,
    all_judged,
    answer,
    bar_lines,
    forecasts,
    plan,
    tick_moment,
    until,
    write_bars,
)


@pytest.fixture(scope="module")
def forecaster() -> Iterator[Forecaster]:
    made = Forecaster()
    yield made
    asyncio.run(made.close())


@pytest.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(dialect="vllm", slots=64, reply=answer) as made:
        yield made


@pytest.fixture
def loop(fake: FakeEngine, forecaster: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)


async def scalar(engine: AsyncEngine, sql: str) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(text(sql))


async def execute(engine: AsyncEngine, sql: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(sql))


async def test_a_tick_becomes_forecasts_bars_heads_and_judgements(
    engine: AsyncEngine, loop: Loop, tmp_path: Path
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 2))
    async with loop.running(engine, feed, plan()) as worker:
        rows = await until(engine, all_judged(4))
        assert await worker.feed_check() is None
        assert await worker.waiting_check() is None
    assert [(row["ticker"], row["as_of"]) for row in rows] == [
        (ticker, tick_moment(tick)) for tick in range(2) for ticker in ("AAA", "BBB")
    ]
    for row in rows:
        assert row["feed"] == "file:bars.csv"
        assert row["lower"] <= row["mean"] <= row["upper"]
        assert row["llm"]["policy"]["status"] == "ok"
        assert row["llm"]["policy"]["decision"] == {"allow": True, "reasons": [], "flags": []}
        assert row["llm"]["policy"]["shadow_mode"] is True
        assert row["llm"]["policy"]["rules"]["allow"] is False
        assert "UNKNOWN_EARNINGS" in row["llm"]["policy"]["rules"]["reasons"]
        assert row["llm"]["rationale"]["text"] == "Momentum carries the price."
        assert row["llm"]["inputs"]["signal"]["last_price"] == row["last_price"]
        assert row["llm"]["inputs"]["headlines"]
    assert await scalar(engine, "select count(*) from bars") == 4
    assert await scalar(engine, "select count(*) from forecast_heads h join forecasts f using (id, as_of)") == 2
    assert await scalar(engine, "select last_as_of from feeds") == tick_moment(1)
    assert await scalar(engine, "select count(distinct subject) from llm_calls where success") == 4
    assert await scalar(engine, "select count(*) from llm_calls where success") == 8


async def test_a_second_start_goes_on_and_takes_appended_rows(engine: AsyncEngine, loop: Loop, tmp_path: Path) -> None:
    path = write_bars(tmp_path / "bars.csv", 1)
    async with loop.running(engine, FileFeed(path), plan()):
        first = await until(engine, all_judged(2))
    async with loop.running(engine, FileFeed(path), plan()):
        with path.open("a", encoding="utf-8") as file:
            start = (tick_moment(1) - datetime(2024, 1, 1, 21, tzinfo=UTC)).days
            file.write(bar_lines(range(start, start + 1)))
        rows = await until(engine, all_judged(4))
    assert [row["as_of"] for row in rows] == [tick_moment(0)] * 2 + [tick_moment(1)] * 2
    assert [row["judged_at"] for row in rows[:2]] == [row["judged_at"] for row in first]


async def test_what_a_stop_left_unjudged_is_judged_after_the_restart(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    path = write_bars(tmp_path / "bars.csv", 1)
    fake.fault = Fault.SILENT
    async with loop.running(engine, FileFeed(path), plan()):
        await until(engine, lambda rows: len(rows) == 2 and fake.active >= 4)
    for row in await forecasts(engine):
        assert row["judged_at"] is None
        assert row["llm"]["policy"]["status"] == "skipped"
        assert row["llm"]["policy"]["error"] == "pending"
        assert row["llm"]["policy"]["shadow_allow"] is False
    fake.fault = Fault.NONE
    async with loop.running(engine, FileFeed(path), plan()):
        rows = await until(engine, all_judged(2))
    assert {row["llm"]["policy"]["status"] for row in rows} == {"ok"}


async def test_what_a_stop_left_behind_says_that_it_was_overtaken(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    path = write_bars(tmp_path / "bars.csv", 2, ("AAA",))
    fake.fault = Fault.SILENT
    async with loop.running(engine, FileFeed(path), plan()):
        await until(engine, lambda rows: len(rows) == 2)
    assert [row["llm"]["policy"]["error"] for row in await forecasts(engine)] == ["pending", "pending"]
    fake.fault = Fault.NONE
    async with loop.running(engine, FileFeed(path), plan()):
        older, newer = await until(engine, lambda rows: rows[-1]["judged_at"] is not None)
    assert older["llm"]["policy"]["error"] == older["llm"]["rationale"]["error"] == "superseded by a newer tick"
    assert older["judged_at"] is None
    assert newer["llm"]["policy"]["status"] == "ok"


async def test_a_slow_model_does_not_slow_the_loop_and_late_ticks_are_merged(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    fake.fault = Fault.SILENT
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 4, ("AAA",)))
    async with loop.running(engine, feed, plan()):
        rows = await until(
            engine,
            lambda rows: [row["llm"]["policy"]["error"] for row in rows].count("superseded by a newer tick") == 2,
        )
        rows = await until(engine, lambda rows: len(rows) == 4)
        assert len(fake.requests) == 2
    errors = [row["llm"]["policy"]["error"] for row in rows]
    assert errors == ["pending", "superseded by a newer tick", "superseded by a newer tick", "pending"]
    assert all(row["judged_at"] is None for row in rows)


async def test_an_unchanged_forecast_is_judged_again_from_the_cache(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 1, ("AAA",)))
    async with loop.running(engine, feed, plan(decision_ttl_s=1)):
        first = (await until(engine, all_judged(1)))[0]
        again = (await until(engine, lambda rows: rows[0]["judged_at"] > first["judged_at"]))[0]
        asked = len(fake.requests)
        assert again["llm"]["policy"]["cached"] is True
        assert again["llm"]["policy"]["decision"] == first["llm"]["policy"]["decision"]
        assert again["llm"]["rationale"]["call_id"] == first["llm"]["rationale"]["call_id"]
        await until(engine, lambda rows: rows[0]["judged_at"] > again["judged_at"])
        assert len(fake.requests) == asked == 2

        await execute(
            engine,
            "insert into social_messages (source, external_id, ticker, ts, handle, text) "
            f"values ('wire', '1', 'AAA', '{tick_moment(0).isoformat()}', 'desk', 'AAA recalls a product')",
        )
        changed = (await until(engine, lambda rows: "recalls" in str(rows[0]["llm"]["inputs"]["headlines"])))[0]
        assert len(fake.requests) == 4
    assert changed["llm"]["inputs"]["headlines"] == ["AAA recalls a product"]
    assert changed["id"] == first["id"]


async def test_a_model_that_is_away_is_said_in_the_row_and_its_return_heals(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    await fake.stop()
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 2, ("AAA",)))
    async with loop.running(engine, feed, plan(decision_ttl_s=1)):
        rows = await until(engine, all_judged(2))
        assert {row["llm"]["policy"]["status"] for row in rows} == {"unavailable"}
        assert all(row["llm"]["policy"]["error"] for row in rows)
        await fake.start()
        rows = await until(engine, lambda rows: rows[-1]["llm"]["policy"]["status"] == "ok")
    assert rows[-1]["llm"]["rationale"]["status"] == "ok"


async def test_a_decision_stands_and_ages_while_the_model_cannot_be_asked_again(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 1, ("AAA",)))
    async with loop.running(engine, feed, plan(decision_ttl_s=1)):
        await until(engine, all_judged(1))
        await fake.stop()
        await execute(engine, "update llm_cache set expires_at = now() - interval '1 second'")
        # The rules are judged anew all the same: what they say is the sign that it was tried.
        await execute(
            engine,
            """update forecasts set features = jsonb_set(features, '{llm,policy,rules,reasons}', '["MARK"]'),
               judged_at = '2020-01-01'""",
        )
        rows = await until(engine, lambda rows: rows[0]["llm"]["policy"]["rules"]["reasons"] != ["MARK"])
    assert rows[0]["judged_at"] == datetime(2020, 1, 1, tzinfo=UTC)
    assert rows[0]["llm"]["policy"]["decision"] == {"allow": True, "reasons": [], "flags": []}


async def test_the_shadow_switch_is_read_when_a_judgement_is_stored(
    engine: AsyncEngine, loop: Loop, tmp_path: Path
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 1, ("AAA",)))
    async with loop.running(engine, feed, plan(decision_ttl_s=1)):
        rows = await until(engine, all_judged(1))
        assert rows[0]["llm"]["policy"]["shadow_mode"] is True
        await execute(
            engine,
            "insert into switches (name, value, set_by, reason) values ('LLM_SHADOW_MODE', false, 'test', 'test')",
        )
        await until(engine, lambda rows: rows[0]["llm"]["policy"]["shadow_mode"] is False)


async def test_the_end_of_the_replay_starts_the_next_run(engine: AsyncEngine, loop: Loop) -> None:
    feed = ReplayFeed(["AAPL", "FB"])
    async with engine.begin() as connection:
        await connection.execute(
            text("insert into feeds (feed, source, last_as_of) values ('replay:1', 'replay', '2013-02-28T21:00:00Z')")
        )
    async with loop.running(engine, feed, plan()):
        rows = await until(engine, lambda rows: sum(row["feed"] == "replay:2" for row in rows) >= 4)
    assert sum(row["feed"] == "replay:1" for row in rows) == 2
    assert await scalar(engine, "select done from feeds where feed = 'replay:1'") is True
    assert await scalar(engine, "select done from feeds where feed = 'replay:2'") is False
    first = min(row["as_of"] for row in rows if row["feed"] == "replay:2")
    assert first.year == 2012


async def run_to_its_end(loop: Loop, engine: AsyncEngine, path: Path) -> None:
    async with loop.running(engine, FileFeed(path), plan()):
        assert loop.task is not None
        await asyncio.wait({loop.task}, timeout=60)


async def test_a_file_with_a_hole_stops_the_start_and_stores_nothing(
    engine: AsyncEngine, loop: Loop, tmp_path: Path
) -> None:
    path = write_bars(tmp_path / "bars.csv", 1)
    path.write_text(path.read_text(encoding="utf-8") + "AAA,2025-01-01,1,2,,1,5\n", encoding="utf-8")
    with pytest.raises(FeedError, match=r"bars\.csv line \d+ column low: missing value"):
        await run_to_its_end(loop, engine, path)
    assert await forecasts(engine) == []
    assert await scalar(engine, "select count(*) from feeds") == 0
