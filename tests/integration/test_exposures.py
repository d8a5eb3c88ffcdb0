"""Who was given which arm, as the loop writes it on a real database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.forecast.feed.file import FileFeed
from services.forecast.model import Forecaster
from tests.fakes.engine import FakeEngine, Fault
from tests.integration.exposure_tables import exposures
from tests.integration.forecast_loop import Loop, all_judged, answer, plan, until, write_bars

BUCKETS = "policy:1.0.0@50,1.1.0@50"


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
    monkeypatch.setenv("LLM_AB_BUCKETS", BUCKETS)
    return Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)


async def test_every_forecast_of_an_experiment_has_its_arm_and_what_its_answer_brought(
    engine: AsyncEngine, loop: Loop, tmp_path: Path
) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 4))
    async with loop.running(engine, feed, plan()):
        rows = await until(engine, all_judged(8))
    found = {row["forecast_id"]: row for row in await exposures(engine)}
    assert found.keys() == {row["id"] for row in rows}
    assert {row["arm"] for row in found.values()} == {"1.0.0", "1.1.0"}
    for row in rows:
        mine, policy = found[row["id"]], row["llm"]["policy"]
        assert (mine["key"], mine["arm"], mine["arm"]) == ("policy", policy["arm"], policy["prompt_version"])
        assert mine["phase"].startswith("environment-")
        assert mine["unit"] == f"{row['ticker']}|{row['as_of'].date()}"
        assert (mine["feed"], mine["ticker"], mine["horizon"], mine["as_of"]) == (
            row["feed"], row["ticker"], "1d", row["as_of"],
        )  # fmt: skip
        assert mine["side"] == row["llm"]["inputs"]["signal"]["side"]
        assert (str(mine["call_id"]), mine["status"]) == (policy["call_id"], "ok")
        assert (mine["allow"], mine["rules_allow"]) == (True, False)
        assert (mine["timed_out"], mine["cached"]) == (False, False)
        assert mine["total_ms"] > 0
        assert mine["tokens"] > 0
        assert mine["realised_return"] is None


async def test_where_no_experiment_runs_nothing_is_written(
    engine: AsyncEngine, loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLM_AB_BUCKETS")
    async with loop.running(engine, FileFeed(write_bars(tmp_path / "bars.csv", 1)), plan()):
        await until(engine, all_judged(2))
    assert await exposures(engine) == []


async def test_only_the_first_judgement_counts(engine: AsyncEngine, loop: Loop, tmp_path: Path) -> None:
    feed = FileFeed(write_bars(tmp_path / "bars.csv", 1, ("AAA",)))
    async with loop.running(engine, feed, plan(decision_ttl_s=1)):
        first = (await until(engine, all_judged(1)))[0]
        noted = await exposures(engine)
        await until(
            engine, lambda rows: rows[0]["judged_at"] > first["judged_at"] and rows[0]["llm"]["policy"]["cached"]
        )
    assert noted[0]["call_id"] is not None
    assert await exposures(engine) == noted


async def test_a_stop_between_the_numbers_and_the_answer_loses_no_arm(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path
) -> None:
    path = write_bars(tmp_path / "bars.csv", 2, ("AAA",))
    fake.fault = Fault.SILENT
    async with loop.running(engine, FileFeed(path), plan()):
        await until(engine, lambda rows: len(rows) == 2)
    waiting = await exposures(engine)
    assert [row["judged_at"] for row in waiting] == [None, None]
    fake.fault = Fault.NONE
    async with loop.running(engine, FileFeed(path), plan()):
        await until(engine, lambda rows: rows[-1]["judged_at"] is not None)
    older, newer = await exposures(engine)
    given_before = [(row["arm"], row["phase"], row["assigned_at"]) for row in waiting]
    assert [(row["arm"], row["phase"], row["assigned_at"]) for row in (older, newer)] == given_before
    assert (older["status"], older["call_id"]) == ("skipped", None)
    assert newer["status"] == "ok"


async def test_an_answer_that_never_came_is_noted_for_its_arm(
    engine: AsyncEngine, loop: Loop, fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DEADLINE_S", "0.5")
    fake.fault = Fault.SILENT
    async with loop.running(engine, FileFeed(write_bars(tmp_path / "bars.csv", 1, ("AAA",))), plan()):
        await until(engine, all_judged(1))
    (row,) = await exposures(engine)
    assert (row["status"], row["timed_out"], row["allow"]) == ("unavailable", True, None)
    assert row["call_id"] is not None
