"""The exchange feed through ccxt itself, against recorded exchanges on loopback."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.settings import load
from services.forecast.feed.choice import choose_feed
from services.forecast.feed.exchange import STRAGGLER_GRACE, ExchangeFeed, open_exchange
from services.forecast.feed.types import FeedError, FeedUnreachableError, Tick
from services.forecast.model import Forecaster
from services.forecast.settings import ForecastSettings
from tests.fakes.engine import FakeEngine
from tests.fakes.exchange import RecordedExchange, Trouble, recorded
from tests.integration.forecast_loop import Loop, all_judged, answer, plan, until

HOUR = timedelta(hours=1)
HALF = timedelta(minutes=30)
START = datetime(2026, 1, 1, tzinfo=UTC)
KRAKEN, COINBASE = "kraken", "coinbaseexchange"
TICKERS = {KRAKEN: "BTC/USD,ETH/USD", COINBASE: "BTC/USD"}
BARS_AT = {KRAKEN: "/OHLC", COINBASE: "/candles"}
Open = Callable[..., ExchangeFeed]


@pytest.fixture
async def kraken() -> AsyncIterator[RecordedExchange]:
    async with RecordedExchange(KRAKEN, now=START + HOUR * 100 + HALF) as made:
        yield made


@pytest.fixture
async def coinbase() -> AsyncIterator[RecordedExchange]:
    async with RecordedExchange(COINBASE, now=START + HOUR * 398 + HALF) as made:
        yield made


@pytest.fixture(params=[KRAKEN, COINBASE])
def both(request: pytest.FixtureRequest) -> tuple[str, RecordedExchange]:
    return request.param, request.getfixturevalue("kraken" if request.param == KRAKEN else "coinbase")


@pytest.fixture
async def feed_on(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Feeds on a recorded exchange's clock, named by settings as the process reads them; closed afterwards."""
    made: list[ExchangeFeed] = []

    def build(name: str, server: RecordedExchange, *, tickers: str = "", horizon: str = "1h") -> ExchangeFeed:
        settings = settings_for(name, server, monkeypatch, tickers=tickers or TICKERS[name], horizon=horizon)
        exchange, errors = open_exchange(name, settings.exchange_url)
        exchange.ccxt.enableRateLimit = False
        exchange.ccxt.timeout = 2_000
        exchange.ccxt.timeout_on_exit = 0
        bars = settings.parsed_horizon
        feed = ExchangeFeed(
            name,
            settings.tickers,
            exchange=exchange,
            errors=errors,
            timeframe=(bars.unit, bars.length),
            clock=lambda: server.now,
        )
        made.append(feed)
        return feed

    yield build
    for feed in made:
        await feed.close()


def settings_for(
    name: str, server: RecordedExchange, monkeypatch: pytest.MonkeyPatch, *, tickers: str, horizon: str = "1h"
) -> ForecastSettings:
    monkeypatch.setenv("FORECAST_FEED", f"ccxt:{name}")
    monkeypatch.setenv("FORECAST_TICKERS", tickers)
    monkeypatch.setenv("FORECAST_HORIZON", horizon)
    monkeypatch.setenv("FORECAST_EXCHANGE_URL", server.url)
    return load(ForecastSettings)


async def first_tick(feed: ExchangeFeed) -> Tick:
    await feed.open()
    tick = await feed.next(None)
    assert tick is not None
    return tick


async def following(feed: ExchangeFeed, after: datetime) -> Tick:
    tick = await feed.next(after)
    assert tick is not None
    return tick


async def test_bars_come_as_the_exchange_recorded_them_and_only_closed_ones(
    kraken: RecordedExchange, feed_on: Open
) -> None:
    feed = feed_on(KRAKEN, kraken)
    tick = await first_tick(feed)
    assert tick.as_of == START + HOUR * 100
    for ticker, pair in (("BTC/USD", "XXBTZUSD"), ("ETH/USD", "XETHZUSD")):
        rows = recorded(KRAKEN, f"OHLC-{pair}")["result"][pair][:100]
        history = feed.history(ticker, tick.as_of, 500)
        assert history.open.tolist() == [float(row[1]) for row in rows]
        assert history.high.tolist() == [float(row[2]) for row in rows]
        assert history.low.tolist() == [float(row[3]) for row in rows]
        assert history.close.tolist() == [float(row[4]) for row in rows]
        assert history.volume.tolist() == [float(row[6]) for row in rows]
        assert tick.bars[ticker].close == float(rows[-1][4])
    assert await feed.next(tick.as_of) is None
    assert not feed.ended(tick.as_of)


async def test_a_bar_that_closes_later_comes_then_with_its_final_values(
    both: tuple[str, RecordedExchange], feed_on: Open
) -> None:
    name, server = both
    feed = feed_on(name, server)
    first = await first_tick(feed)
    server.now += HALF - timedelta(seconds=1)
    assert await feed.next(first.as_of) is None
    server.now += timedelta(seconds=1)
    tick = await following(feed, first.as_of)
    assert tick.as_of == first.as_of + HOUR
    assert all(bar.volume > 1 for bar in tick.bars.values())
    assert await feed.next(tick.as_of) is None


async def test_a_bar_that_ends_while_the_exchange_answers_waits_for_the_next_look(
    kraken: RecordedExchange, feed_on: Open
) -> None:
    feed = feed_on(KRAKEN, kraken)
    first = await first_tick(feed)
    kraken.now = first.as_of + HOUR - timedelta(milliseconds=5)
    end = first.as_of + HOUR + timedelta(milliseconds=5)

    def pass_the_end() -> None:
        kraken.now = end

    kraken.before_answer = pass_the_end
    # Both symbols are asked at once: the second may be answered after the end. What counts is when it was asked.
    assert await feed.next(first.as_of) is None
    tick = await following(feed, first.as_of)
    assert all(bar.volume > 1 for bar in tick.bars.values())


async def test_a_gap_of_one_symbol_is_waited_for_and_then_left_out(kraken: RecordedExchange, feed_on: Open) -> None:
    feed = feed_on(KRAKEN, kraken)
    first = await first_tick(feed)
    kraken.missing["XETHZUSD"] = {START + HOUR * 100, START + HOUR * 101}
    kraken.now = START + HOUR * 101 + timedelta(seconds=1)
    assert await feed.next(first.as_of) is None
    kraken.now = START + HOUR * 101 + STRAGGLER_GRACE + timedelta(seconds=1)
    tick = await following(feed, first.as_of)
    assert tick.as_of == START + HOUR * 101
    assert set(tick.bars) == {"BTC/USD"}
    assert len(feed.history("ETH/USD", tick.as_of, 500)) == 100

    kraken.missing.clear()
    kraken.now = START + HOUR * 102 + HALF
    tick = await following(feed, tick.as_of)
    assert tick.as_of == START + HOUR * 102
    assert set(tick.bars) == {"BTC/USD", "ETH/USD"}
    assert len(feed.history("ETH/USD", tick.as_of, 500)) == 102


async def test_periods_in_which_nothing_was_traded_are_passed_over(coinbase: RecordedExchange, feed_on: Open) -> None:
    feed = feed_on(COINBASE, coinbase)
    first = await first_tick(feed)
    assert first.as_of == START + HOUR * 398
    coinbase.missing["BTC-USD"] = {START + HOUR * 398}
    coinbase.now = START + HOUR * 399 + HALF
    assert await feed.next(first.as_of) is None
    coinbase.now = START + HOUR * 400 + HALF
    tick = await following(feed, first.as_of)
    assert tick.as_of == START + HOUR * 400


async def test_an_exchange_that_sends_short_pages_is_asked_to_the_newest_bar(
    coinbase: RecordedExchange, feed_on: Open
) -> None:
    feed = feed_on(COINBASE, coinbase)
    # Nothing before and a long hole within: more than one page of 300 bars without any.
    coinbase.missing["BTC-USD"] = {START + HOUR * number for number in range(330) if number != 2}
    tick = await first_tick(feed)
    assert tick.as_of == START + HOUR * 398
    rows = sorted(recorded(COINBASE, "candles-BTC-USD"))
    assert feed.history("BTC/USD", tick.as_of, 500).close.tolist() == [row[4] for row in [rows[2], *rows[330:398]]]


@pytest.mark.parametrize("trouble", [trouble for trouble in Trouble if trouble is not Trouble.NONE])
async def test_an_exchange_in_trouble_at_the_start_is_said_and_heals(
    both: tuple[str, RecordedExchange], feed_on: Open, trouble: Trouble
) -> None:
    name, server = both
    feed = feed_on(name, server)
    server.trouble = trouble
    for _ in range(2):
        with pytest.raises(FeedUnreachableError, match=f"^ccxt:{name}: ") as raised:
            await feed.open()
        assert len(str(raised.value)) < 500
        assert "\n" not in str(raised.value)
    server.trouble = Trouble.NONE
    assert (await first_tick(feed)).as_of < server.now


@pytest.mark.parametrize("trouble", [trouble for trouble in Trouble if trouble is not Trouble.NONE])
async def test_an_exchange_in_trouble_later_is_said_and_nothing_is_lost(
    both: tuple[str, RecordedExchange], feed_on: Open, trouble: Trouble
) -> None:
    name, server = both
    feed = feed_on(name, server)
    first = await first_tick(feed)
    server.trouble, server.trouble_at = trouble, BARS_AT[name]
    for _ in range(2):
        server.now += HALF
        with pytest.raises(FeedUnreachableError, match=f"^ccxt:{name}: "):
            await feed.next(first.as_of)
    server.trouble = Trouble.NONE
    tick = await following(feed, first.as_of)
    assert tick.as_of == first.as_of + HOUR
    assert all(bar.volume > 1 for bar in tick.bars.values())


async def test_trouble_with_one_symbol_is_not_taken_for_a_gap(kraken: RecordedExchange, feed_on: Open) -> None:
    feed = feed_on(KRAKEN, kraken)
    first = await first_tick(feed)
    kraken.now += HOUR
    answered = len(kraken.paths)

    def spoil_the_next() -> None:
        kraken.trouble = Trouble.BROKEN if len(kraken.paths) == answered + 1 else Trouble.NONE

    kraken.before_answer = spoil_the_next
    with pytest.raises(FeedUnreachableError, match="ExchangeNotAvailable"):
        await feed.next(first.as_of)
    kraken.before_answer, kraken.trouble = lambda: None, Trouble.NONE
    assert set((await following(feed, first.as_of)).bars) == {"BTC/USD", "ETH/USD"}


async def test_an_exchange_out_of_reach_is_said_and_heals(both: tuple[str, RecordedExchange], feed_on: Open) -> None:
    name, server = both
    feed = feed_on(name, server)
    await server.stop()
    with pytest.raises(FeedUnreachableError, match=f"ccxt:{name}: ExchangeNotAvailable"):
        await feed.open()
    await server.start()
    first = await first_tick(feed)
    await server.stop()
    with pytest.raises(FeedUnreachableError, match=f"ccxt:{name}: ExchangeNotAvailable"):
        await feed.next(first.as_of)
    await server.start()
    server.now += HOUR
    assert (await following(feed, first.as_of)).as_of == first.as_of + HOUR


async def test_a_symbol_or_a_bar_that_the_exchange_does_not_have_ends_the_start(
    both: tuple[str, RecordedExchange], feed_on: Open
) -> None:
    name, server = both
    feed = feed_on(name, server, tickers="BTC/USD,NOSUCH/USD")
    with pytest.raises(FeedError, match=f"ccxt:{name}: NOSUCH/USD, bars of 1h: BadSymbol") as raised:
        await feed.open()
    assert not isinstance(raised.value, FeedUnreachableError)


async def test_too_few_bars_are_said_of_the_symbols_they_are_of(kraken: RecordedExchange, feed_on: Open) -> None:
    kraken.missing["XETHZUSD"] = {START + HOUR * number for number in range(90)}
    with pytest.raises(FeedError, match=r"fewer than 65 closed bars of 1h exist of ETH/USD$") as raised:
        await feed_on(KRAKEN, kraken).open()
    assert not isinstance(raised.value, FeedUnreachableError)


async def test_a_symbol_without_a_bar_yet_is_waited_for(kraken: RecordedExchange, feed_on: Open) -> None:
    feed = feed_on(KRAKEN, kraken)
    kraken.missing["XETHZUSD"] = {START + HOUR * number for number in range(120)}
    with pytest.raises(FeedUnreachableError, match=r"no closed bar of 1h came of ETH/USD$"):
        await feed.open()
    kraken.missing.clear()
    assert set((await first_tick(feed)).bars) == {"BTC/USD", "ETH/USD"}


def test_exchanges_and_addresses_that_cannot_be_are_named() -> None:
    with pytest.raises(FeedError, match=r"FORECAST_FEED=ccxt:nosuch: ccxt knows no exchange of that name"):
        open_exchange("nosuch")
    with pytest.raises(FeedError, match=r"FORECAST_FEED=ccxt:zaif: ccxt has no bars of this exchange"):
        open_exchange("zaif")
    with pytest.raises(FeedError, match=r"FORECAST_EXCHANGE_URL: must be .* not 'localhost:9000'"):
        open_exchange(KRAKEN, "localhost:9000")


async def test_a_length_of_bars_that_the_exchange_does_not_have_is_named_before_it_is_asked(
    both: tuple[str, RecordedExchange],
) -> None:
    name, server = both
    exchange, _ = open_exchange(name, server.url)
    with pytest.raises(FeedError, match=rf"ccxt:{name}: no bars of 3h, only of 1m, .*1d") as raised:
        await exchange.fetch_ohlcv("BTC/USD", "3h", since=0, limit=1)
    assert not isinstance(raised.value, FeedUnreachableError)
    assert server.paths == []
    await exchange.close()


@pytest.mark.parametrize(
    ("without_ccxt", "feed", "said"),
    [
        (False, "ccxt:nosuch", "FORECAST_FEED=ccxt:nosuch: ccxt knows no exchange of that name"),
        (True, "ccxt:kraken", "FORECAST_FEED=ccxt:kraken needs ccxt, an extra: run `make install-ccxt`"),
    ],
)
def test_the_process_ends_with_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, without_ccxt: bool, feed: str, said: str
) -> None:
    monkeypatch.setenv("FORECAST_FEED", feed)
    monkeypatch.setenv("FORECAST_TICKERS", "BTC/USD")
    hide = "sys.modules['ccxt'] = sys.modules['ccxt.async_support'] = None; " if without_ccxt else ""
    code = f"import runpy, sys; {hide}runpy.run_module('services.forecast', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def forecaster() -> Iterator[Forecaster]:
    made = Forecaster()
    yield made
    asyncio.run(made.close())


async def test_the_loop_stores_forecasts_of_an_exchange_through_an_outage(
    engine: AsyncEngine, forecaster: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    async with (
        RecordedExchange(COINBASE, now=hour - HOUR, moved=hour - START - HOUR * 390) as server,
        FakeEngine(dialect="vllm", slots=64, reply=answer) as fake,
    ):
        # No forming bar: the clock here is the real one, and its hour may end while this runs.
        server.missing["BTC-USD"] = {hour - HOUR, hour}
        settings = settings_for(COINBASE, server, monkeypatch, tickers="BTC/USD")
        feed = choose_feed(settings)
        loop = Loop(fake=fake, forecaster=forecaster, state=tmp_path / "state", patch=monkeypatch)
        how = replace(plan(), horizon_name="1h", horizon=settings.parsed_horizon)
        async with loop.running(engine, feed, how) as worker:
            rows = await until(engine, all_judged(1))
            assert [(row["feed"], row["ticker"], row["as_of"]) for row in rows] == [
                ("ccxt:coinbaseexchange:1h", "BTC/USD", hour - HOUR)
            ]
            server.trouble = Trouble.BROKEN
            async with asyncio.timeout(30):
                while (reason := await worker.feed_check()) is None:  # noqa: ASYNC110 - a plain value of the worker's
                    await asyncio.sleep(0.02)
            assert reason.startswith("ccxt:coinbaseexchange: ExchangeNotAvailable")

            server.now, server.missing["BTC-USD"] = hour, {hour}
            server.trouble = Trouble.NONE
            rows = await until(engine, all_judged(2))
            assert await worker.feed_check() is None
    assert rows[-1]["as_of"] == hour
    assert rows[-1]["last_price"] == sorted(recorded(COINBASE, "candles-BTC-USD"))[389][4]
    assert rows[-1]["horizon"] == "1h"
    assert rows[-1]["llm"]["policy"]["status"] == "ok"
