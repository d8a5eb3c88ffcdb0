"""Which version the forecast loop judges by: what was activated before it started, and while it runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate
from libs.llm.in_force import Ground
from services.forecast.feed.file import FileFeed
from services.forecast.feed.types import MIN_BARS
from services.forecast.model import Forecaster
from tests.fakes.engine import FakeEngine
from tests.integration.forecast_loop import Loop, all_judged, answer, bar_lines, forecasts, plan, until, write_bars

ON_FILE = Ground("1.0.0", None, None)


@pytest.fixture
async def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loop]:
    forecaster = Forecaster()
    async with FakeEngine(dialect="vllm", slots=64, reply=answer) as fake:
        yield Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
    await forecaster.close()


async def execute(engine: AsyncEngine, sql: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(sql))


async def promote(engine: AsyncEngine, version: str) -> None:
    async with engine.begin() as connection:
        await activate(connection, key="policy", version=version, arms=(), who="ada", why="better", ground=ON_FILE)


async def versions(engine: AsyncEngine) -> list[str]:
    return [row["llm"]["policy"]["prompt_version"] for row in await forecasts(engine)]


async def test_nothing_is_judged_before_it_is_known_what_was_activated(
    engine: AsyncEngine, loop: Loop, tmp_path: Path
) -> None:
    await promote(engine, "1.1.0")
    await execute(engine, "alter table activations rename to hidden")
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 2))
    async with loop.running(engine, feed, plan()) as worker:
        while "read what prompts are in force" not in (await worker.waiting_check() or ""):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        assert await forecasts(engine) == []
        await execute(engine, "alter table hidden rename to activations")
        await until(engine, all_judged(4))
    assert await versions(engine) == ["1.1.0"] * 4


async def test_a_running_loop_follows_an_activation(engine: AsyncEngine, loop: Loop, tmp_path: Path) -> None:
    path = write_bars(tmp_path / "bars.csv", 1)
    async with loop.running(engine, FileFeed(path), plan()):
        await until(engine, all_judged(2))
        await promote(engine, "1.1.0")
        day = MIN_BARS
        while (await versions(engine))[-1] != "1.1.0":
            with path.open("a", encoding="utf-8") as file:
                file.write(bar_lines(range(day, day + 1)))
            day += 1
            count = len(await forecasts(engine)) + 2
            await until(engine, all_judged(count))
    found = await versions(engine)
    assert found[:2] == ["1.0.0", "1.0.0"]
    assert found == sorted(found)
