"""Postgres is killed under the forecast loop and comes back: no forecast is lost, and every one is judged."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from services.forecast.feed.file import FileFeed
from services.forecast.model import Forecaster
from services.forecast.worker import Worker
from tests.conftest import migrate
from tests.fakes.engine import FakeEngine
from tests.integration.forecast_loop import Loop, all_judged, answer, plan, tick_moment, until, write_bars
from tools.local_stack.postgres import EmbeddedPostgres

TICKS = 12


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(tmp_path / "pg", durable=True)
    made.start()  # from the main thread: the server ends with the thread that started it
    migrate(made.url())
    yield made
    made.stop()


@pytest.fixture
async def engine(server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    made = create_engine(DatabaseSettings(database_url=SecretStr(server.url())), application="test")
    yield made
    await made.dispose()


@pytest.fixture
async def forecaster() -> AsyncIterator[Forecaster]:
    made = Forecaster()
    yield made
    await made.close()


async def waits_for_database(worker: Worker) -> str:
    async with asyncio.timeout(60):
        while (reason := await worker.waiting_check()) is None:  # noqa: ASYNC110 - the loop has no event for it
            await asyncio.sleep(0.05)
    return reason


async def test_no_forecast_is_lost_while_postgres_is_away(
    server: EmbeddedPostgres,
    engine: AsyncEngine,
    forecaster: Forecaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", TICKS))
    async with FakeEngine(dialect="vllm", slots=64, reply=answer, delay_s=0.1) as fake:
        loop = Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
        async with loop.running(engine, feed, plan(interval_s=0.3)) as worker:
            await until(engine, lambda rows: len(rows) >= 6)
            server.kill()
            reason = await waits_for_database(worker)
            assert reason.startswith("waiting to ")
            server.start()
            rows = await until(engine, lambda rows: len(rows) == TICKS * 2)
            await until(engine, all_judged(TICKS * 2))
            assert await worker.waiting_check() is None
    assert [(row["ticker"], row["as_of"]) for row in rows] == [
        (ticker, tick_moment(tick)) for tick in range(TICKS) for ticker in ("AAA", "BBB")
    ]


async def test_a_crash_of_the_worker_process_costs_no_tick(
    engine: AsyncEngine, forecaster: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 6))
    async with FakeEngine(dialect="vllm", slots=64, reply=answer) as fake:
        loop = Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
        async with loop.running(engine, feed, plan(interval_s=0.2)):
            await until(engine, lambda rows: len(rows) >= 2)
            assert forecaster.worker_pid is not None
            os.kill(forecaster.worker_pid, signal.SIGKILL)
            rows = await until(engine, all_judged(12))
    assert {row["model"] for row in rows} == {"theta"}


async def test_the_loop_waits_for_a_database_that_is_away_at_the_start_and_stops_when_told(
    server: EmbeddedPostgres,
    engine: AsyncEngine,
    forecaster: Forecaster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.kill()
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 1))
    async with FakeEngine(dialect="vllm", slots=64, reply=answer) as fake:
        loop = Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
        async with loop.running(engine, feed, plan()) as worker:
            assert "check the schema" in await waits_for_database(worker)
        async with loop.running(engine, feed, plan()) as worker:
            await waits_for_database(worker)
            server.start()
            await until(engine, all_judged(2))
