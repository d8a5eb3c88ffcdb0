"""`/analytics/recent`: what was said, at once, and a summary where the model has one in time."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.http_app import Edge
from libs.keys import create_key, parse_scopes
from libs.service_settings import ListenSettings
from libs.settings import load
from services.analytics.app import open_app
from tests.fakes.engine import FakeEngine, Fault
from tests.integration.api_app import database_away, environment, until
from tools.local_stack.postgres import EmbeddedPostgres

SOCIAL = text(
    "insert into social_messages (source, external_id, ticker, ts, handle, text) "
    "values ('x', :id, :ticker, :ts, '@a', :text)"
)
RATING = text(
    "insert into analyst_ratings (source, external_id, ticker, ts, provider, firm, analyst, action, rating, target) "
    "values ('wire', :id, :ticker, :ts, 'wire', 'Bank', 'J. Doe', 'upgrade', 'buy', :target)"
)
START = datetime(2010, 1, 4, tzinfo=UTC)


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=" All is calm. ") as engine:
        yield engine


@pytest.fixture
async def http(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[httpx.AsyncClient, None]:
    more = {"ANALYTICS_SUMMARY_WAIT_S": "0.5", "LLM_DEADLINE_S": "10"}
    for name, value in environment(database_url, fake.base_url, tmp_path, **more).items():
        monkeypatch.setenv(name, value)
    listen = load(ListenSettings)
    headers = {"Authorization": f"Bearer {create_key(listen.keys_path, 'reader', parse_scopes('read'))}"}
    async with open_app(listen) as app:
        transport = httpx.ASGITransport(Edge(app, max_body_bytes=65536))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=60) as made:
            yield made


async def put(engine: AsyncEngine, *, posts: int = 0, ratings: int = 0, ticker: str = "AAPL") -> None:
    async with engine.begin() as connection:
        for number in range(posts):
            row = {"id": f"{ticker}{number}", "ticker": ticker, "ts": START + timedelta(minutes=number)}
            await connection.execute(SOCIAL, {**row, "text": f"post {number}"})
        for number in range(ratings):
            row = {"id": f"{ticker}{number}", "ticker": ticker, "ts": START + timedelta(minutes=number)}
            await connection.execute(RATING, {**row, "target": 0.1 + 0.2 if number else None})


async def recent(http: httpx.AsyncClient, ticker: str = "AAPL") -> dict[str, Any]:
    answer = await http.get("/analytics/recent", params={"ticker": ticker})
    assert answer.status_code == 200
    return answer.json()


async def test_it_has_the_newest_50_of_each_and_a_summary(
    http: httpx.AsyncClient, engine: AsyncEngine, fake: FakeEngine
) -> None:
    await put(engine, posts=60, ratings=55)
    await put(engine, posts=3, ticker="IBM")
    body = await recent(http, "aapl")
    assert set(body) == {"social", "ratings", "summary"}
    assert [post["text"] for post in body["social"]] == [f"post {number}" for number in range(59, 9, -1)]
    assert set(body["social"][0]) == {"ts", "source", "handle", "text"}
    assert len(body["ratings"]) == 50
    assert set(body["ratings"][0]) == {"ts", "provider", "firm", "analyst", "action", "rating", "target"}
    assert body["ratings"][0]["target"] == 0.3
    assert body["summary"] == "All is calm."
    sent = fake.requests[0]["messages"]
    assert "post 59" in sent[-2]["content"]
    assert "Bank (wire): upgrade buy, target 0.3" in sent[-2]["content"]
    assert fake.requests[0]["priority"] == 2


async def test_nothing_to_summarise_asks_no_model(http: httpx.AsyncClient, fake: FakeEngine) -> None:
    assert await recent(http) == {"social": [], "ratings": [], "summary": ""}
    assert fake.requests == []


async def test_a_missing_target_is_null(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await put(engine, ratings=1)
    assert (await recent(http))["ratings"][0]["target"] is None


async def test_whatever_the_model_does_the_posts_come_and_the_summary_is_empty(
    http: httpx.AsyncClient, engine: AsyncEngine, fake: FakeEngine
) -> None:
    await put(engine, posts=1)
    for fault in (Fault.STATUS, Fault.CUT, Fault.MALFORMED, Fault.GARBAGE, Fault.NO_FINISH):
        fake.fault = fault
        body = await recent(http)
        assert (len(body["social"]), body["summary"]) == (1, ""), fault
    await fake.stop()
    assert (await recent(http))["summary"] == ""
    await fake.start()
    fake.fault = Fault.NONE
    healed = await until(lambda: recent(http), lambda body: body["summary"] != "")
    assert healed["summary"] == "All is calm."


async def test_a_slow_summary_is_left_out_now_and_there_later(
    http: httpx.AsyncClient, engine: AsyncEngine, fake: FakeEngine
) -> None:
    await put(engine, posts=1)
    fake.delay_s = 1.5
    assert (await recent(http))["summary"] == ""
    await until(lambda: recent(http), lambda body: body["summary"] == "All is calm.")
    assert len(fake.requests) == 1


async def test_a_frozen_model_holds_up_few_calls_and_no_caller(
    http: httpx.AsyncClient, engine: AsyncEngine, fake: FakeEngine
) -> None:
    for number in range(8):
        await put(engine, posts=1, ticker=f"T{number}")
    fake.fault = Fault.SILENT
    bodies = await asyncio.gather(*(recent(http, f"T{number}") for number in range(8)))
    assert [body["summary"] for body in bodies] == [""] * 8
    assert fake.peak <= 4


async def test_a_ticker_is_asked_for_and_a_key_too(http: httpx.AsyncClient) -> None:
    missing = await http.get("/analytics/recent")
    assert missing.status_code == 422
    assert missing.json()["errors"][0]["field"] == "ticker"
    assert (await http.get("/analytics/recent", params={"ticker": "a b"})).status_code == 422
    nobody = await http.get("/analytics/recent", params={"ticker": "AAPL"}, headers={"Authorization": ""})
    assert nobody.status_code == 401


async def test_without_the_database_it_is_a_503_problem_and_heals(
    http: httpx.AsyncClient, postgres: EmbeddedPostgres, database_url: str
) -> None:
    with database_away(postgres, database_url):
        answer = await http.get("/analytics/recent", params={"ticker": "AAPL"})
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).status_code == 503
    assert (await recent(http))["summary"] == ""


async def test_unknown_parameters_are_refused_by_name(http: httpx.AsyncClient) -> None:
    answer = await http.get("/analytics/recent", params={"ticker": "AAPL", "limits": "5"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "limits: this route has no such parameter"
