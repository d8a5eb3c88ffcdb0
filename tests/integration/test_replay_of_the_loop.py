"""What the forecast loop stored, replayed: exactly by its records, and its calls by the api of another process."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.registry import Registry
from libs.replay.cases import stored_cases
from libs.replay.check import Checked, Checker, check_all
from services.forecast.feed.file import FileFeed
from services.forecast.model import Forecaster
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import running
from tests.integration.forecast_loop import Loop, all_judged, answer, plan, until, write_bars
from tests.integration.replay_cases import DENY, replayed, replies, rows


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=answer) as engine:
        yield engine


async def test_a_forecast_of_the_loop_and_its_calls(
    engine: AsyncEngine, fake: FakeEngine, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forecaster = Forecaster()
    loop = Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
    async with loop.running(engine, FileFeed(write_bars(tmp_path / "bars.csv", 2)), plan()):
        forecasts = await until(engine, all_judged(4))
    await forecaster.close()
    checked, now = Checked(), datetime.now(UTC)
    checker = Checker(Registry.load_quietly(Path("configs/llm_prompts.yaml")), Rules.load(RULES_FILE))
    period = {"since": now - timedelta(hours=1), "until": now + timedelta(minutes=1)}
    await check_all(checker, stored_cases(engine, **period), into=checked)
    assert (checked.first, checked.cases, checked.answers, checked.not_kept) == (None, 4, 8, 0)
    fake.reply = replies(DENY)
    async with running(monkeypatch, database_url, fake.base_url, tmp_path / "api") as stack:
        policies = [forecast["llm"]["policy"] for forecast in forecasts]
        answers = await asyncio.gather(*(replayed(stack, policy["call_id"], version="1.1.0") for policy in policies))
    assert {one["diff"]["decision"]["flip"] for one in answers} == {"allow_to_deny"}
    kept = await rows(engine, "select forecast_id, ticker, as_of, before from replays")
    assert {(row["forecast_id"], row["ticker"], row["as_of"]) for row in kept} == {
        (forecast["id"], forecast["ticker"], forecast["as_of"]) for forecast in forecasts
    }
    assert {row["before"]["rules"] for row in kept} == {False}
