"""`/signals/latest`: the newest forecasts of the feed that wrote last, at the same cost however long the history."""

import json
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.api.repository import BY_INDEX_ONLY, SIGNALS
from services.forecast.repository import Repository
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, running

FEED = text(
    "insert into feeds (feed, source, last_write_at) values (:feed, 'replay', now() + :age * interval '1 s') "
    "on conflict (feed) do update set last_write_at = excluded.last_write_at"
)
PARTITION = text("select ensure_partition('forecasts', 'month', cast(:as_of as timestamptz))")
FORECAST = text(
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features)
    values (:feed, :ticker, :horizon, :model, :as_of, gen_random_uuid(), 1, :mean, :lower, :upper,
      cast(:features as jsonb))
    """
)
HEAD = text(
    """
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    select feed, ticker, horizon, model, as_of, id from forecasts
    where feed = :feed and ticker = :ticker and horizon = :horizon and model = :model and as_of = :as_of
    on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
    """
)


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> AsyncGenerator[Stack, None]:
    async with FakeEngine() as fake, running(monkeypatch, database_url, fake.base_url, tmp_path) as made:
        yield made


async def put(engine: AsyncEngine, *, day: str, feed: str = "replay:1", age: int = 0, **given: Any) -> None:
    """Store a forecast as the forecast service does."""
    row: Mapping[str, Any] = {
        "feed": feed,
        "ticker": "AAPL",
        "horizon": "1d",
        "model": "theta",
        "as_of": datetime.fromisoformat(day).replace(tzinfo=UTC),
        "mean": 101.5,
        "lower": 99.0,
        "upper": 104.0,
        "features": json.dumps({"llm": {"v": 1}}),
        **given,
    }
    async with engine.begin() as connection:
        await connection.execute(FEED, {"feed": feed, "age": age})
        await connection.execute(PARTITION, {"as_of": row["as_of"]})
        await connection.execute(FORECAST, row)
        await connection.execute(HEAD, {name: row[name] for name in ("feed", "ticker", "horizon", "model", "as_of")})


async def latest(stack: Stack, **given: str) -> list[dict[str, Any]]:
    answer = await stack.http.get("/signals/latest", params=given)
    assert answer.status_code == 200
    return answer.json()


async def test_nothing_written_yet_is_an_empty_list(stack: Stack) -> None:
    assert await latest(stack) == []


async def test_a_signal_has_its_fields_and_the_llm_part_as_stored(stack: Stack, engine: AsyncEngine) -> None:
    llm = {"v": 1, "policy": {"raw": '{"allow": true}', "decision": None}, "rationale": {"text": "naïve “x”"}}
    await put(engine, day="2010-01-04", features=json.dumps({"llm": llm, "other": 1}))
    (signal,) = await latest(stack)
    assert set(signal) == {"feed", "as_of", "ts", "ticker", "horizon", "model", "mean", "lower", "upper", "llm"}
    assert signal["as_of"] == "2010-01-04T00:00:00Z"
    assert (signal["ticker"], signal["horizon"], signal["model"]) == ("AAPL", "1d", "theta")
    assert (signal["mean"], signal["lower"], signal["upper"]) == (101.5, 99.0, 104.0)
    assert signal["llm"] == llm


async def test_a_forecast_without_an_llm_part_says_null(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2010-01-04", features="{}")
    assert (await latest(stack))[0]["llm"] is None


async def test_the_latest_is_by_market_time_within_the_feed_that_wrote_last(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2013-05-01", feed="replay:1", age=0, mean=1)
    await put(engine, day="2010-01-04", feed="replay:2", age=10, mean=2)
    await put(engine, day="2010-01-05", feed="replay:2", age=10, mean=3)
    assert [(signal["as_of"][:10], signal["mean"]) for signal in await latest(stack)] == [("2010-01-05", 3)]


async def test_a_run_that_has_begun_and_written_nothing_hides_nothing(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2013-03-01", age=-60)
    await Repository(engine, horizon="1d").begin_run("replay:2", "replay")
    assert [row["as_of"] for row in await latest(stack)] == ["2013-03-01T00:00:00Z"]


async def test_a_ticker_with_small_letters_is_found_as_written(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2013-03-01", ticker="kPEPE/USDC")
    await put(engine, day="2013-03-01")
    found = await latest(stack, tickers="kPEPE/USDC,aapl")
    assert [row["ticker"] for row in found] == ["AAPL", "kPEPE/USDC"]


async def test_tickers_and_horizon_choose(stack: Stack, engine: AsyncEngine) -> None:
    for ticker in ("AAPL", "IBM", "BTC/USDT"):
        for horizon in ("1d", "5d"):
            await put(engine, day="2010-01-04", ticker=ticker, horizon=horizon)

    async def chosen(**given: str) -> list[tuple[str, str]]:
        return [(signal["ticker"], signal["horizon"]) for signal in await latest(stack, **given)]

    assert len(await chosen()) == 6
    assert await chosen(horizon="5d") == [("AAPL", "5d"), ("BTC/USDT", "5d"), ("IBM", "5d")]
    assert await chosen(tickers="ibm, btc/usdt ,", horizon="1d") == [("BTC/USDT", "1d"), ("IBM", "1d")]
    assert await chosen(tickers="NONE") == []
    assert await chosen(tickers="") == []
    assert await chosen(horizon="9d") == []


async def test_of_two_models_the_newer_forecast_stands_for_the_ticker(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2010-01-04", model="naive")
    await put(engine, day="2010-01-05", model="theta")
    assert [signal["model"] for signal in await latest(stack)] == ["theta"]


async def test_numbers_have_at_most_15_digits_and_are_never_nan(stack: Stack, engine: AsyncEngine) -> None:
    features = json.dumps({"llm": {"inputs": {"factors": {"x": 0.1 + 0.2, "n": [1 / 3]}}}})
    await put(engine, day="2010-01-04", mean=0.1 + 0.2, lower=1 / 3, upper=float("nan"), features=features)
    answer = await stack.http.get("/signals/latest")
    assert "NaN" not in answer.text
    (signal,) = answer.json()
    assert (signal["mean"], signal["lower"], signal["upper"]) == (0.3, 0.333333333333333, None)
    assert signal["llm"]["inputs"]["factors"] == {"x": 0.3, "n": [0.333333333333333]}


async def test_text_the_database_cannot_take_is_the_callers_fault(stack: Stack, engine: AsyncEngine) -> None:
    await put(engine, day="2010-01-04")
    for path in ("/signals/latest?horizon=%00", "/signals/latest?tickers=A%00", "/llm/admin/calls?prompt_key=%00"):
        assert (await stack.http.get(path)).status_code == 422


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/signals/latest?ticker=AAPL", "ticker"),
        ("/llm/admin/calls?sucess=false", "sucess"),
        ("/llm/admin/stats?hour=2", "hour"),
    ],
)
async def test_unknown_parameters_are_refused_by_name(stack: Stack, path: str, name: str) -> None:
    answer = await stack.http.get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{name}: this route has no such parameter"


async def test_too_many_tickers_are_refused_by_name(stack: Stack) -> None:
    answer = await stack.http.get("/signals/latest", params={"tickers": ",".join(f"T{n}" for n in range(2001))})
    assert answer.status_code == 422
    assert "tickers" in answer.json()["detail"]


FILL_MONTHS = text(
    """
    select ensure_partition('forecasts', 'month', timestamptz '2000-01-01 UTC' + d * interval '1 day')
    from generate_series(cast(:first as int), cast(:last as int)) d
    """
)
FILL = text(
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper)
    select 'replay:1', 'T' || t, '1d', 'theta', timestamptz '2000-01-01 UTC' + d * interval '1 day', gen_random_uuid(),
      1, 1, 1, 1
    from generate_series(cast(:first as int), cast(:last as int)) d, generate_series(1, 20) t
    """
)
FILL_HEADS = text(
    """
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    select distinct on (ticker) feed, ticker, horizon, model, as_of, id from forecasts order by ticker, as_of desc
    on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
    """
)


async def fill(engine: AsyncEngine, *, first: int, last: int) -> None:
    """A forecast of 20 tickers for each day of the range."""
    async with engine.begin() as connection:
        await connection.execute(FEED, {"feed": "replay:1", "age": 0})
        await connection.execute(FILL_MONTHS, {"first": first, "last": last})
        await connection.execute(FILL, {"first": first, "last": last})
        await connection.execute(FILL_HEADS)
    async with engine.connect() as connection:
        outside = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await outside.execute(text("analyze forecasts, forecast_heads, feeds"))


async def rows_read(engine: AsyncEngine) -> tuple[str, int]:
    """The executed plan, and how many buffers it touched while executing."""
    async with engine.connect() as connection:
        await connection.execute(BY_INDEX_ONLY)
        found = await connection.execute(
            text(f"explain (analyze, buffers, format json) {SIGNALS.text}"),
            {"tickers": None, "horizon": "1d"},
        )
        plan = found.scalar_one()
    top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return json.dumps(top), top["Shared Hit Blocks"] + top["Shared Read Blocks"]


def executed_scans(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Every scan that ran: how, and of what."""
    own = [(plan["Node Type"], plan["Relation Name"])] if "Relation Name" in plan and plan["Actual Loops"] else []
    return own + [scan for part in plan.get("Plans", []) for scan in executed_scans(part)]


async def test_the_cost_does_not_grow_with_the_history(stack: Stack, engine: AsyncEngine) -> None:
    await fill(engine, first=0, last=89)
    _, few = await rows_read(engine)
    await fill(engine, first=90, last=1499)
    plan, many = await rows_read(engine)
    scans = executed_scans(json.loads(plan))
    of_forecasts = [how for how, relation in scans if relation.startswith("forecasts_")]
    assert of_forecasts
    assert all(how.startswith("Index") for how in of_forecasts), scans
    assert many <= few * 1.5
    assert len(await latest(stack)) == 20
