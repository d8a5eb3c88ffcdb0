"""The forecast loop put together as the process does it, over a fake engine at the wire, for tests."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.calendar import open_calendar
from libs.judgement.rules import Rules
from libs.model_client import open_model
from services.forecast.cases import Plan
from services.forecast.feed.types import MIN_BARS, Feed
from services.forecast.main import RULES_FILE, Ground, make_worker, work
from services.forecast.model import Forecaster
from services.forecast.patience import Patience
from services.forecast.settings import Horizon
from services.forecast.worker import Worker
from tests.fakes.engine import FakeEngine

FIRST = datetime(2024, 1, 1, 21, tzinfo=UTC)
ALLOW = json.dumps({"allow": True, "reasons": [], "flags": []})


def answer(request: Mapping[str, Any]) -> str:
    """A decision where the request is constrained to an object with `allow`, prose elsewhere."""
    return ALLOW if '"allow"' in json.dumps(request.get("structured_outputs", {})) else "Momentum carries the price."


def bar_lines(days: range, tickers: tuple[str, ...] = ("AAA", "BBB")) -> str:
    """CSV rows of a slow wave per ticker."""
    lines: list[str] = []
    for day in days:
        for number, ticker in enumerate(tickers):
            close = 100 + number * 10 + (day * 7 + number) % 11 + day * 0.1
            moment = (FIRST + timedelta(days=day)).isoformat()
            lines.append(f"{ticker},{moment},{close},{close + 1},{close - 1},{close},1000000\n")
    return "".join(lines)


def write_bars(path: Path, count: int, tickers: tuple[str, ...] = ("AAA", "BBB")) -> Path:
    """A file whose first tick is its `MIN_BARS`-th bar, with `count` ticks."""
    path.write_text(
        "ticker,as_of,open,high,low,close,volume\n" + bar_lines(range(MIN_BARS - 1 + count), tickers), encoding="utf-8"
    )
    return path


def tick_moment(number: int) -> datetime:
    """The moment of the number-th tick (from 0) of such a file."""
    return FIRST + timedelta(days=MIN_BARS - 1 + number)


def plan(*, interval_s: float = 0.05, decision_ttl_s: float = 900) -> Plan:
    """The bundled rules, one bar ahead."""
    return Plan(
        interval_s=interval_s,
        horizon_name="1d",
        horizon=Horizon(1, "1d", timedelta(days=1)),
        decision_ttl_s=decision_ttl_s,
        calendar=open_calendar("bars"),
        rules=Rules.load(RULES_FILE),
    )


class Loop:
    """Runs the loop against one database and one engine, again and again where a test restarts it."""

    def __init__(self, *, fake: FakeEngine, forecaster: Forecaster, state: Path, patch: pytest.MonkeyPatch) -> None:
        self._forecaster = forecaster
        self._state = state
        self.task: asyncio.Task[None] | None = None
        patch.setenv("LLM_BASE_URL", fake.base_url)

    @asynccontextmanager
    async def running(self, engine: AsyncEngine, feed: Feed, how: Plan) -> AsyncGenerator[Worker, None]:
        """The loop at work; told to stop at the end of the block."""
        stop = asyncio.Event()
        ground = Ground(engine, Patience(stop), stop)
        async with open_model(engine, role="forecast", state_dir=self._state) as model:
            worker = make_worker(feed, how, model=model, forecaster=self._forecaster, ground=ground)
            task = self.task = asyncio.create_task(work(worker, ground, model.prompts))
            try:
                yield worker
            finally:
                stop.set()
                async with asyncio.timeout(30):
                    await task


async def forecasts(engine: AsyncEngine) -> list[RowMapping]:
    """Every forecast, oldest first, with `llm` lifted out of the features."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("select *, features -> 'llm' as llm from forecasts order by feed, as_of, ticker")
        )
        return list(rows.mappings())


async def until(engine: AsyncEngine, condition: Callable[[list[RowMapping]], bool]) -> list[RowMapping]:
    """Wait until the stored forecasts are as wanted; returns them."""
    async with asyncio.timeout(60):
        while not condition(rows := await forecasts(engine)):  # noqa: ASYNC110 - another connection writes it
            await asyncio.sleep(0.05)
    return rows


def all_judged(count: int) -> Callable[[list[RowMapping]], bool]:
    """That many forecasts, all of them judged."""
    return lambda rows: len(rows) == count and all(row["judged_at"] is not None for row in rows)
