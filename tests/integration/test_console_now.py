"""What the first page shows of this moment, from a real database, and while parts of the house are away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.switches import turn
from services.analytics.console.house import House
from services.analytics.console.live import Live
from services.analytics.console.pages.now.queries import read_moment

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
