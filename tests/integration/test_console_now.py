"""What the first page shows of this moment, from a real database, and while parts of the house are away."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.switches import turn
from services.analytics.console.house import House
from services.analytics.console.live import Live
from services.analytics.console.pages.now.page import policy_words, said, tone
from services.analytics.console.pages.now.queries import newest_forecasts, read_moment

HEALTHY = {"ok": True, "cached": False, "model": "Lexi", "latency_ms": 12.0, "checked_at": "2026-01-01T00:00:00Z"}


@asynccontextmanager
async def live(engine: AsyncEngine, answer: httpx.Response | Exception) -> AsyncGenerator[Live]:
    def api(_request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(api)) as client:
        looking = Live(engine, House(client, api_url="http://api"))
        await looking.start()
        try:
            yield looking
        finally:
            await looking.close()


async def lines(looking: Live, *names: str) -> dict[str, tuple[str, str]]:
    async with asyncio.timeout(20):
        while not set(names) <= set(looking.watch().lines):  # noqa: ASYNC110 - as a page does, which is told nothing
            await asyncio.sleep(0.02)
    return {name: (line.state, line.words) for name, line in looking.picture.lines.items()}


async def test_an_empty_house_is_said_in_words(engine: AsyncEngine) -> None:
    async with live(engine, httpx.Response(200, json=HEALTHY)) as looking:
        said = await lines(looking, "halt", "model")
    assert said["broker"] == ("unknown", "the account was never read")
    assert said["feed"] == ("unknown", "no forecast was written yet")
    assert said["gate"][0] == "note"
    assert said["halt"] == ("good", "entries may be made")
    assert said["model"] == ("good", "answers (Lexi, 12 ms)")
    assert said["database"] == ("good", "answers")


@pytest.mark.parametrize(("minutes", "state"), [(1, "good"), (5, "note"), (15, "bad")])
async def test_a_feed_that_stands_still_is_noticed_and_then_amiss(
    engine: AsyncEngine, minutes: int, state: str
) -> None:
    wrote = text(
        "insert into feeds (feed, source, last_as_of, last_write_at) values "
        "('replay:1', 'replay', '2012-08-20 20:00Z', clock_timestamp() - make_interval(mins => :minutes))"
    )
    async with engine.begin() as connection:
        await connection.execute(wrote, {"minutes": minutes})
    async with engine.connect() as connection:
        found, words = (await read_moment(connection)).lines()["feed"]
    assert found == state
    assert words.startswith("replay:1, 2012-08-20, heard of ")


async def test_a_feed_that_confirms_its_newest_prices_is_heard_of(engine: AsyncEngine) -> None:
    rows = (
        (
            "insert into feeds (feed, source, last_as_of, last_write_at) "
            "values ('ccxt:1', 'ccxt', '2026-01-02Z', clock_timestamp() - interval '5 hours')"
        ),
        (
            "insert into forecast_heads (feed, ticker, horizon, model, as_of, id) "
            "values ('ccxt:1', 'BTC/USDT', '1d', 'theta', '2026-01-02Z', gen_random_uuid())"
        ),
        (
            "insert into bars (feed, ticker, as_of, open, high, low, close, volume) "
            "values ('ccxt:1', 'BTC/USDT', '2026-01-02Z', 1, 1, 1, 1, 1)"
        ),
    )
    async with engine.begin() as connection:
        for row in rows:
            await connection.execute(text(row))
    async with engine.connect() as connection:
        moment = await read_moment(connection)
    assert moment.lines()["feed"][0] == "good"


async def test_a_model_that_gives_no_sound_answer_is_amiss(engine: AsyncEngine) -> None:
    async with live(engine, httpx.Response(200, json=HEALTHY | {"ok": False})) as looking:
        said = await lines(looking, "model")
    assert said["model"][0] == "bad"
    assert said["api"] == ("good", "answers")


async def test_an_api_that_is_away_is_said_and_the_rest_is_shown_all_the_same(engine: AsyncEngine) -> None:
    async with live(engine, httpx.ConnectError("refused")) as looking:
        said = await lines(looking, "model", "halt")
    assert said["api"][0] == "bad"
    assert "does not answer: refused" in said["api"][1]
    assert said["model"][0] == "unknown"
    assert said["halt"][0] == "good"


async def test_the_kill_switch_is_told_with_who_and_why(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        why = "the model talks nonsense"
        await turn(connection, "ORDER_GATE_DISABLED", True, operator="ann", reason=why, minutes=5, key_name="k")
    async with engine.connect() as connection:
        state, words = (await read_moment(connection)).lines()["gate"]
    assert state == "bad"
    assert "ann" in words
    assert "the model talks nonsense" in words


async def test_since_when_is_what_the_rows_say(engine: AsyncEngine) -> None:
    before = (
        (
            "insert into halts (id, reason, halted_at, halted_until) values "
            "(gen_random_uuid(), 'a runaway', '2026-01-02 03:00Z', '2026-01-02 04:00Z')"
        ),
        (
            "insert into switches (name, value, set_by, reason, set_at) values "
            "('LLM_SHADOW_MODE', false, 'ann', 'go live', '2026-01-01 01:00Z')"
        ),
        (
            "insert into switches (name, value, set_by, reason, set_at, expires_at) values "
            "('ORDER_GATE_DISABLED', true, 'ann', 'it raves', '2026-01-01 02:00Z', '2026-01-01 02:15Z')"
        ),
    )
    async with live(engine, httpx.Response(200, json=HEALTHY)) as looking:
        async with engine.begin() as connection:
            for row in before:
                await connection.execute(text(row))
        said = await lines(looking, "halt", "gate", "api")
        shown = {name: looking.picture.lines[name].when for name in ("halt", "gate", "api", "database")}
    assert said["halt"][0] == "bad"
    assert said["gate"][0] == "good"
    assert shown["halt"] == "since 2026-01-02 03:00:00 UTC"
    assert shown["gate"] == "since 2026-01-01 02:15:00 UTC", "the kill switch ended by itself"
    for name in ("api", "database"):
        assert shown[name].startswith("seen since ")
        assert shown[name].endswith(", when this console first looked")
    async with engine.begin() as connection:
        await connection.execute(text("update halts set rearmed_at = '2026-01-02 05:00Z', rearmed_by = 'ann'"))
        assert (await read_moment(connection)).since()["halt"] == datetime(2026, 1, 2, 5, tzinfo=UTC)


async def test_a_change_that_was_watched_has_its_own_moment(engine: AsyncEngine) -> None:
    async with live(engine, httpx.Response(200, json=HEALTHY)) as looking:
        looking.say("api", "good", "answers")
        first = looking.picture.lines["api"]
        looking.say("api", "good", "answers")
        assert looking.picture.lines["api"].since == first.since
        looking.say("api", "bad", "is away")
        line = looking.picture.lines["api"]
        assert (line.since > first.since, line.when[:6]) == (True, "since ")
        looking.heard()
        assert looking.picture.lines["api"].state == "good"


async def test_a_forecast_that_waits_keeps_what_was_last_said_of_its_series(engine: AsyncEngine) -> None:
    for ticker in ("MSFT", "AAPL"):
        for day, error in ((1, "too late"), (2, None), (3, "pending")):
            await written(engine, ticker, day=day, error=error)
    await written(engine, "NEW", day=3, error="pending")
    async with engine.connect() as connection:
        rows = await newest_forecasts(connection, "replay:1")
    assert [(row["ticker"], row["as_of"].day) for row in rows] == [("AAPL", 3), ("MSFT", 3), ("NEW", 3)]
    assert {said(row) for row in rows} == {"being judged \N{MIDDLE DOT} rules allow"}
    assert {tone(row) for row in rows} == {"lexi-muted"}
    before = rows[0]["before"]
    assert (before["ticker"], before["as_of"].day, before["rationale"]) == ("AAPL", 2, "AAPL drifts")
    assert said(before) == "policy deny THIN \N{MIDDLE DOT} rules allow"
    assert rows[2]["before"] is None


def test_a_policy_that_was_not_asked_is_not_called_skipped() -> None:
    row = {"allow": None, "status": "skipped", "error": "superseded"}
    assert policy_words(row) == "policy not asked: superseded"
    assert policy_words(row | {"status": "invalid", "error": "not JSON"}) == "policy invalid"


async def written(engine: AsyncEngine, ticker: str, *, day: int, error: str | None) -> None:
    """A forecast as the service stores it: judged where nothing is amiss, else not."""
    decision: Any = None if error else {"allow": False, "reasons": ["THIN"], "flags": []}
    policy: dict[str, Any] = {
        "status": "skipped" if error else "ok", "error": error, "decision": decision,
        "rules": {"allow": True, "reasons": []},
    }  # fmt: skip
    llm = {"policy": policy, "rationale": {"text": "" if error else f"{ticker} drifts"}}
    values = {
        "ticker": ticker, "as_of": datetime(2012, 8, day, 20, tzinfo=UTC), "id": uuid4(),
        "features": json.dumps({"llm": llm}), "judged_at": None if error else datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    async with engine.begin() as connection:
        for statement in WRITTEN:
            await connection.execute(text(statement), values)


WRITTEN = (
    "select ensure_partition('forecasts', 'month', :as_of)",
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, judged_at)
    values ('replay:1', :ticker, '1d', 'theta', :as_of, :id, 1, 1, 1, 1, cast(:features as jsonb), :judged_at)
    """,
    """
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    values ('replay:1', :ticker, '1d', 'theta', :as_of, :id)
    on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
    """,
)


async def test_nothing_is_read_while_nobody_looks(engine: AsyncEngine) -> None:
    asked = 0

    def api(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(200, json=HEALTHY)

    async with httpx.AsyncClient(transport=httpx.MockTransport(api)) as client:
        looking = Live(engine, House(client, api_url="http://api"))
        await looking.start()
        try:
            await asyncio.sleep(0.2)
            assert (asked, looking.picture.lines) == (0, {})
            await lines(looking, "model")
            assert asked == 1
        finally:
            await looking.close()
