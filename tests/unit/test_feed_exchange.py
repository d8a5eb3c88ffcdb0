"""The exchange feed against a recorded server on loopback, through a client of ccxt's shape."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from services.forecast.feed.exchange import ExchangeFeed, open_exchange, rebased
from services.forecast.feed.types import MIN_BARS, FeedError, FeedUnreachableError, Run

HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
TICKERS = ("BTC/USDT", "ETH/USDT")


class Recording:
    """A server that answers like an exchange's public candles: `recorded[symbol]` is what it has."""

    def __init__(self) -> None:
        self.recorded: dict[str, list[list[float | None]]] = {ticker: candles(MIN_BARS + 10) for ticker in TICKERS}
        self.status = 200
        self.queries: list[dict[str, list[str]]] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Recording":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        query = parse_qs(urlsplit(head.split(" ")[1]).query)
        self.queries.append(query)
        rows = [row for row in self.recorded[query["symbol"][0]] if (row[0] or 0) >= int(query["since"][0])]
        body = json.dumps(rows[: int(query["limit"][0])]).encode()
        writer.write(
            f"HTTP/1.1 {self.status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
        )
        await writer.drain()
        writer.close()


class RecordedExchange:
    """A client that obeys ccxt's `fetch_ohlcv` and speaks to the recording."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url)
        self.closed = False

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str = "1m", since: int | None = None, limit: int | None = None
    ) -> list[list[float]]:
        values: dict[str, Any] = {"symbol": symbol, "timeframe": timeframe, "since": since, "limit": limit}
        answer = await self._client.get("/candles", params=values)
        answer.raise_for_status()
        return answer.json()

    async def close(self) -> None:
        self.closed = True
        await self._client.aclose()


def candles(count: int, first: int = 0) -> list[list[float | None]]:
    """Hourly candles as exchanges stamp them: by their start."""
    rows: list[list[float | None]] = []
    for number in range(first, first + count):
        start = (START + HOUR * number).timestamp() * 1000
        price = 100 + number % 7
        rows.append([start, price, price + 1, price - 1, price + 0.5, 10.0])
    return rows


@pytest.fixture
async def recording() -> AsyncIterator[Recording]:
    async with Recording() as made:
        yield made


def feed_on(recording: Recording, clock: Callable[[], datetime]) -> ExchangeFeed:
    return ExchangeFeed(
        "kraken",
        TICKERS,
        exchange=RecordedExchange(recording.url),
        errors=(httpx.HTTPError,),
        timeframe=("1h", HOUR),
        clock=clock,
    )


async def test_only_closed_bars_count_and_nothing_is_lost_between_polls(recording: Recording) -> None:
    now = START + HOUR * (MIN_BARS + 4) + timedelta(minutes=30)
    feed = feed_on(recording, lambda: now)
    await feed.open()
    first = await feed.next(None)
    assert first is not None
    assert first.as_of == START + HOUR * (MIN_BARS + 4)
    assert set(first.bars) == set(TICKERS)
    assert feed.history("BTC/USDT", first.as_of, 500).close[-1] == first.bars["BTC/USDT"].close
    assert await feed.next(first.as_of) is None

    now += HOUR * 3  # nobody asked for three hours
    moments: list[datetime] = []
    after = first.as_of
    while (tick := await feed.next(after)) is not None:
        after = tick.as_of
        moments.append(after)
    assert moments == [first.as_of + HOUR * number for number in (1, 2, 3)]
    assert not feed.ended(after)
    assert {query["timeframe"][0] for query in recording.queries} == {"1h"}
    await feed.close()


async def test_what_was_missed_for_long_comes_with_its_history_and_one_look(recording: Recording) -> None:
    recording.recorded = {ticker: candles(900) for ticker in TICKERS}
    feed = feed_on(recording, lambda: START + HOUR * 800)
    await feed.open()
    left = START + HOUR * 150  # before the first bar that opening fetched
    tick = await feed.next(left)
    assert tick is not None
    assert tick.as_of == left + HOUR
    assert len(feed.history("BTC/USDT", tick.as_of, 500)) == 151
    asked = len(recording.queries)
    while tick is not None:
        left, tick = tick.as_of, await feed.next(tick.as_of)
    assert left == START + HOUR * 800
    assert len(recording.queries) == asked + len(TICKERS)
    await feed.close()


async def test_a_tick_waits_for_a_straggler_but_not_for_ever(recording: Recording) -> None:
    now = START + HOUR * (MIN_BARS + 2)
    feed = feed_on(recording, lambda: now)
    await feed.open()
    first = await feed.next(None)
    assert first is not None
    recording.recorded["ETH/USDT"] = recording.recorded["ETH/USDT"][: MIN_BARS + 2]
    now += HOUR
    assert await feed.next(first.as_of) is None
    now += timedelta(seconds=61)
    late = await feed.next(first.as_of)
    assert late is not None
    assert set(late.bars) == {"BTC/USDT"}
    await feed.close()


async def test_an_exchange_out_of_reach_is_said_and_heals(recording: Recording) -> None:
    feed = feed_on(recording, lambda: START + HOUR * (MIN_BARS + 2))
    recording.status = 503
    with pytest.raises(FeedUnreachableError, match="ccxt:kraken: HTTPStatusError"):
        await feed.open()
    recording.status = 200
    await feed.open()
    assert await feed.next(None) is not None
    await feed.close()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([0, 1, 2, 0.5, None, 1], "hole"),
        ([0, 1, 2, 0.5, 1], "hole"),
        ([0, 1, 0.5, 2, 1, 1], "cannot be"),
        ([0, 1, 2, 0.5, float("nan"), 1], "cannot be"),
    ],
)
async def test_a_bar_with_a_hole_is_refused(recording: Recording, row: list[float | None], problem: str) -> None:
    row[0] = (START + HOUR).timestamp() * 1000
    recording.recorded["BTC/USDT"] = [*candles(1), row]
    feed = feed_on(recording, lambda: START + HOUR * 5)
    with pytest.raises(FeedError, match=f"BTC/USDT: .*{problem}"):
        await feed.open()
    await feed.close()


async def test_too_little_history_and_no_symbols_are_named(recording: Recording) -> None:
    recording.recorded["ETH/USDT"] = candles(5)
    feed = feed_on(recording, lambda: START + HOUR * (MIN_BARS + 2))
    with pytest.raises(FeedError, match=f"fewer than {MIN_BARS} closed bars of 1h"):
        await feed.open()
    await feed.close()
    with pytest.raises(FeedError, match="FORECAST_TICKERS: name the symbols"):
        ExchangeFeed("kraken", (), exchange=RecordedExchange("http://x"), errors=(), timeframe=("1h", HOUR))


def test_an_exchange_has_one_run() -> None:
    feed = ExchangeFeed("kraken", TICKERS, exchange=RecordedExchange("http://x"), errors=(), timeframe=("1h", HOUR))
    assert feed.run_name(None) == "ccxt:kraken:1h"
    assert feed.run_name(Run("ccxt:kraken:1h", None, done=False)) == "ccxt:kraken:1h"


def test_without_ccxt_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    monkeypatch.setitem(sys.modules, "ccxt.async_support", None)
    with pytest.raises(FeedError, match="needs ccxt, an extra: run `make install-ccxt`"):
        open_exchange("kraken")


def test_every_address_is_moved_to_another_host() -> None:
    urls = {"public": "https://api.kraken.com/0/public", "nested": {"v2": "https://v2.kraken.com/x?y=1"}, "n": 3}
    assert rebased(urls, "http://127.0.0.1:99") == {
        "public": "http://127.0.0.1:99/0/public",
        "nested": {"v2": "http://127.0.0.1:99/x?y=1"},
        "n": 3,
    }
