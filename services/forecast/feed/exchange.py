"""Bars of a crypto exchange through ccxt, polled over its public REST API. Only closed bars count.

ccxt is an extra: `pip install -r requirements/ccxt.txt`. It is imported here and nowhere else.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import structlog

from libs.judgement.bars import Bars
from services.forecast.feed.table import EPOCH, BarTable, make_history
from services.forecast.feed.types import MIN_BARS, Bar, FeedError, FeedUnreachableError, Run, Tick

PAGE = 500
PAGES = 200
STRAGGLER_GRACE = timedelta(seconds=60)

log = structlog.get_logger(__name__)


class Exchange(Protocol):
    """The part of a ccxt exchange that is used here."""

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str = "1m", since: int | None = None, limit: int | None = None
    ) -> list[list[float]]:
        """Bars from `since` (ms) on, oldest first: start of the bar (ms), open, high, low, close, volume."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


def open_exchange(name: str, base_url: str | None = None) -> tuple[Exchange, tuple[type[Exception], ...]]:
    """A ccxt exchange by its id, and the errors its calls may raise.

    `base_url` replaces scheme and host of every address it talks to (a proxy, a recording). Raises `FeedError`
    when ccxt is not installed or knows no such exchange.
    """
    try:
        import ccxt.async_support as ccxt  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FeedError(
            f"FORECAST_FEED=ccxt:{name} needs ccxt, an extra: .venv/bin/pip install -r requirements/ccxt.txt"
        ) from error
    library: Any = ccxt
    if name not in library.exchanges:
        raise FeedError(f"FORECAST_FEED=ccxt:{name}: ccxt knows no exchange of that name")
    exchange = getattr(library, name)({"enableRateLimit": True})
    if base_url is not None:
        exchange.urls["api"] = rebased(exchange.urls["api"], base_url)
    return exchange, (library.BaseError,)


def rebased(urls: Any, base_url: str) -> Any:
    """The same addresses (a text or a nested mapping of texts) on another scheme and host."""
    if isinstance(urls, dict):
        return {key: rebased(value, base_url) for key, value in urls.items()}  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(urls, str):
        return urls
    base, parts = urlsplit(base_url), urlsplit(urls)
    return urlunsplit((base.scheme, base.netloc, parts.path, parts.query, parts.fragment))


class ExchangeFeed:
    """Closed bars of some symbols of one exchange.

    The first tick of an empty database is the newest closed bar; later ticks follow the last one without a hole,
    however long nobody asked. A tick waits for a straggling symbol for `STRAGGLER_GRACE` after the bar's end; a symbol
    that is later than that misses this tick. Every poll asks once per symbol, within ccxt's rate limit.
    """

    def __init__(
        self,
        name: str,
        tickers: Sequence[str],
        *,
        exchange: Exchange,
        errors: tuple[type[Exception], ...],
        timeframe: tuple[str, timedelta],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not tickers:
            raise FeedError(f"FORECAST_TICKERS: name the symbols to follow on {name}, such as BTC/USDT,ETH/USDT")
        self._name = name
        self._exchange = exchange
        self._errors = (*errors, OSError, TimeoutError)
        self._timeframe, self._length = timeframe
        self._clock = clock
        self._bars: dict[str, dict[datetime, Bar]] = {ticker: {} for ticker in tickers}
        self._table = BarTable({})

    @property
    def source(self) -> str:
        """`ccxt:` and the exchange's id."""
        return f"ccxt:{self._name}"

    def run_name(self, previous: Run | None) -> str:
        """An exchange has one run, for ever."""
        return self.source if previous is None else previous.name

    async def open(self) -> None:
        """Fetch enough history to forecast from. Raises `FeedError`, `FeedUnreachableError` where waiting may help."""
        await self._poll(self._clock() - self._length * (PAGE - 1))
        ready = self._table.ready_moment(MIN_BARS, every=True)
        if ready is None:
            raise FeedError(f"{self.source}: a symbol has fewer than {MIN_BARS} closed bars of {self._timeframe}")

    async def close(self) -> None:
        """Close the exchange's connections."""
        await self._exchange.close()

    async def next(self, after: datetime | None) -> Tick | None:
        """The earliest bar's end after this one that every symbol has reached, or whose stragglers are overdue."""
        newest = self._table.last_moment()
        if after is not None:
            self._forget_before(after - self._length * PAGE)
        await self._poll(min(after or self._clock(), newest or self._clock()) - self._length * 2)
        if after is None:
            before_newest = self._table.last_moment()
            after = None if before_newest is None else before_newest - self._length
        moment = self._table.next_moment(after)
        if moment is None:
            return None
        tick = self._table.tick(moment)
        complete = all(self._reached(ticker, moment) for ticker in self._bars)
        return tick if complete or self._clock() > moment + STRAGGLER_GRACE else None

    def ended(self, after: datetime | None) -> bool:
        """Never: an exchange goes on."""
        return False

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last bars up to a moment."""
        return self._table.history(ticker, as_of, bars)

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The last days with a bar up to a moment."""
        return self._table.days(as_of, count)

    def _forget_before(self, moment: datetime) -> None:
        for ticker, bars in self._bars.items():
            self._bars[ticker] = {as_of: bar for as_of, bar in bars.items() if as_of >= moment}

    def _reached(self, ticker: str, moment: datetime) -> bool:
        return any(as_of >= moment for as_of in reversed(self._bars[ticker]))

    async def _poll(self, since: datetime) -> None:
        try:
            await asyncio.gather(*(self._fetch(ticker, since) for ticker in self._bars))
        except self._errors as error:
            raise FeedUnreachableError(f"{self.source}: {type(error).__name__}: {error}") from error
        self._table = BarTable(
            {ticker: make_history([bars[moment] for moment in sorted(bars)]) for ticker, bars in self._bars.items()}
        )

    async def _fetch(self, ticker: str, since: datetime) -> None:
        """Fetch page after page until the newest closed bar."""
        for _ in range(PAGES):
            rows = await self._exchange.fetch_ohlcv(
                ticker, self._timeframe, since=int((since - EPOCH) / timedelta(milliseconds=1)), limit=PAGE
            )
            now = self._clock()
            for row in rows:
                bar = to_bar(ticker, row, self._length)
                if bar.as_of <= now:
                    self._bars[ticker][bar.as_of] = bar
            if len(rows) < PAGE:
                return
            since = EPOCH + timedelta(milliseconds=rows[-1][0]) + self._length
        log.warning("exchange_sent_too_many_pages", feed=self.source, ticker=ticker, pages=PAGES)


def to_bar(ticker: str, row: Sequence[float | None], length: timedelta) -> Bar:
    """One row of ccxt's OHLCV as a bar; its `as_of` is the bar's end. Raises `FeedError` for a hole."""
    values = [value for value in row if value is not None]
    if len(row) != 6 or len(values) != len(row):
        raise FeedError(f"{ticker}: the exchange sent a bar with a hole: {list(row)}")
    start, opened, high, low, close, volume = (float(value) for value in values)
    if min(opened, high, low, close) <= 0 or high < low or volume < 0:
        raise FeedError(f"{ticker}: the exchange sent a bar that cannot be: {list(row)}")
    return Bar(EPOCH + timedelta(milliseconds=start) + length, opened, high, low, close, volume)
