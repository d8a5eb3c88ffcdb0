"""Bars of a crypto exchange through ccxt, polled over its public REST API. Only closed bars count.

ccxt is an extra: `make install-ccxt`. It is imported here and nowhere else.
"""

import asyncio
import math
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
EMPTY_STEP = 100
"""Bars to go on by after a page without any: exchanges cap a request at this many or more, some look no further."""
STRAGGLER_GRACE = timedelta(seconds=60)
ERROR_CHARS = 300

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


class CcxtExchange:
    """A ccxt exchange whose answers are told apart: what waiting heals, and what it does not."""

    def __init__(self, source: str, library: Any, exchange: Any) -> None:
        self.ccxt = exchange
        self._source = source
        self._wrong: tuple[type[Exception], ...] = (library.BadRequest, library.NotSupported, library.ArgumentsRequired)

    async def fetch_ohlcv(
        self, symbol: str, timeframe: str = "1m", since: int | None = None, limit: int | None = None
    ) -> list[list[float]]:
        """As ccxt's. Raises `FeedError` for a symbol or timeframe the exchange does not have, ccxt's errors for an
        exchange that cannot serve now, `FeedUnreachableError` for an answer that is not in its format.
        """
        if timeframe not in self.ccxt.timeframes:
            raise FeedError(f"{self._source}: no bars of {timeframe}, only of {', '.join(self.ccxt.timeframes)}")
        try:
            await self._know_markets()
            return await self.ccxt.fetch_ohlcv(symbol, timeframe, since=since, limit=limit)
        except self._wrong as error:
            raise FeedError(f"{self._source}: {symbol}, bars of {timeframe}: {in_short(error)}") from error
        except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError) as error:
            # ccxt's parsers take the documented format for granted: a maintenance page makes them stumble.
            raise FeedUnreachableError(
                f"{self._source}: {symbol}: the answer is not in the exchange's format: {in_short(error)}"
            ) from error

    async def close(self) -> None:
        """Close its connections."""
        await self.ccxt.close()

    async def _know_markets(self) -> None:
        # ccxt reads some maintenance pages as an empty list of markets, and keeps that for ever unless told otherwise.
        if not await self.ccxt.load_markets(reload=self.ccxt.markets == {}):
            raise FeedUnreachableError(f"{self._source}: the exchange lists no market at all")


def open_exchange(name: str, base_url: str | None = None) -> tuple[CcxtExchange, tuple[type[Exception], ...]]:
    """A ccxt exchange by its id, and the errors of its calls after which asking again is right.

    `base_url` replaces scheme and host of every address it talks to (a proxy, a recording). Raises `FeedError`
    when ccxt is not installed, knows no such exchange or has no bars of it, or the address is none.
    """
    source = f"FORECAST_FEED=ccxt:{name}"
    try:
        import ccxt.async_support as ccxt
    except ImportError as error:
        raise FeedError(f"{source} needs ccxt, an extra: run `make install-ccxt` (requirements/ccxt.txt)") from error
    library: Any = ccxt
    if name not in library.exchanges:
        raise FeedError(f"{source}: ccxt knows no exchange of that name")
    exchange = getattr(library, name)({"enableRateLimit": True})
    if not exchange.has["fetchOHLCV"]:
        raise FeedError(f"{source}: ccxt has no bars of this exchange")
    if base_url is not None:
        address = urlsplit(base_url)
        if address.scheme not in {"http", "https"} or not address.netloc:
            raise FeedError(
                f"FORECAST_EXCHANGE_URL: must be an address such as http://127.0.0.1:9000, not {base_url!r}"
            )
        exchange.urls["api"] = rebased(exchange.urls["api"], base_url)
    return CcxtExchange(f"ccxt:{name}", library, exchange), (library.BaseError,)


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
    that is later than that misses this tick. A poll asks once per symbol, more often only where the exchange sends
    short pages, within ccxt's rate limit. Exchanges keep only so many bars (Kraken 720); what is older is lost.
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
        self._place = f"ccxt:{name}"
        self._exchange = exchange
        self._errors = (*errors, OSError, TimeoutError)
        self._timeframe, self._length = timeframe
        self._clock = clock
        self._bars: dict[str, dict[datetime, Bar]] = {ticker: {} for ticker in tickers}
        self._table = BarTable({})
        self._known_from: datetime | None = None

    @property
    def source(self) -> str:
        """`ccxt:`, the exchange's id and the bars' length: bars of two lengths must never meet in one run."""
        return f"{self._place}:{self._timeframe}"

    def run_name(self, previous: Run | None) -> str:
        """Bars of one length from one exchange have one run, for ever."""
        return self.source if previous is None else previous.name

    async def open(self) -> None:
        """Fetch enough history to forecast from. Raises `FeedError`, `FeedUnreachableError` where waiting may help."""
        await self._poll(self._clock() - self._length * (PAGE - 1))
        silent = [ticker for ticker, bars in self._bars.items() if not bars]
        if silent:
            raise FeedUnreachableError(f"{self._place}: no closed bar of {self._timeframe} came of {', '.join(silent)}")
        short = [ticker for ticker, bars in self._bars.items() if len(bars) < MIN_BARS]
        if short:
            raise FeedError(
                f"{self._place}: fewer than {MIN_BARS} closed bars of {self._timeframe} exist of {', '.join(short)}"
            )

    async def close(self) -> None:
        """Close the exchange's connections."""
        await self._exchange.close()

    async def next(self, after: datetime | None) -> Tick | None:
        """The earliest bar's end after this one that every symbol has reached, or whose stragglers are overdue.

        What was fetched and is complete is given without asking the exchange again.
        """
        known = after is not None and not self._lacks_history(after)
        tick = self._tick_after(after) if known else None
        if tick is None or not self._complete(tick):
            await self._poll_around(after)
            newest = self._table.last_moment()
            tick = self._tick_after(newest - self._length if after is None and newest is not None else after)
        if tick is None:
            return None
        return tick if self._complete(tick) or self._clock() > tick.as_of + STRAGGLER_GRACE else None

    def ended(self, after: datetime | None) -> bool:
        """Never: an exchange goes on."""
        return False

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last bars up to a moment."""
        return self._table.history(ticker, as_of, bars)

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The last days with a bar up to a moment."""
        return self._table.days(as_of, count)

    def _tick_after(self, after: datetime | None) -> Tick | None:
        moment = self._table.next_moment(after)
        return None if moment is None else self._table.tick(moment)

    def _complete(self, tick: Tick) -> bool:
        return all(any(as_of >= tick.as_of for as_of in reversed(bars)) for bars in self._bars.values())

    def _lacks_history(self, after: datetime) -> bool:
        return self._known_from is None or after - self._length * MIN_BARS < self._known_from

    async def _poll_around(self, after: datetime | None) -> None:
        """Ask from two bars before what is known on; after a long absence from as far before it as `open` does."""
        newest = self._table.last_moment() or self._clock()
        if after is None:
            await self._poll(newest - self._length * 2)
            return
        for ticker, bars in self._bars.items():
            self._bars[ticker] = {as_of: bar for as_of, bar in bars.items() if as_of >= after - self._length * PAGE}
        back = PAGE - 1 if self._lacks_history(after) else 2
        await self._poll(min(after, newest) - self._length * back)

    async def _poll(self, since: datetime) -> None:
        """Take over what all symbols answered, or nothing: half of a poll must not look like a straggler."""
        answers = await asyncio.gather(*(self._fetch(ticker, since) for ticker in self._bars), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, self._errors):
                raise FeedUnreachableError(f"{self._place}: {in_short(answer)}") from answer
            if isinstance(answer, BaseException):
                raise answer
        fetched = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not any(fetched):
            raise FeedUnreachableError(f"{self._place}: the exchange answered without a single bar")
        for ticker, bars in zip(self._bars, fetched, strict=True):
            self._bars[ticker].update(bars)
        self._known_from = since if self._known_from is None else min(since, self._known_from)
        self._table = BarTable(
            {ticker: make_history([bars[moment] for moment in sorted(bars)]) for ticker, bars in self._bars.items()}
        )

    async def _fetch(self, ticker: str, since: datetime) -> dict[datetime, Bar]:
        """Closed bars by their end, page after page until the newest one.

        Exchanges send fewer bars than asked for, or only those of as many periods, even if none were traded in.
        """
        found: dict[datetime, Bar] = {}
        for _ in range(PAGES):
            # A bar that ends while the exchange answers may still be a forming one in its answer.
            asked_at = self._clock()
            rows = await self._exchange.fetch_ohlcv(
                ticker, self._timeframe, since=int((since - EPOCH) / timedelta(milliseconds=1)), limit=PAGE
            )
            bars = [to_bar(ticker, row, self._length) for row in rows]
            found.update((bar.as_of, bar) for bar in bars if bar.as_of <= asked_at)
            newest = max((bar.as_of for bar in bars), default=since)
            since = newest if newest > since else since + self._length * EMPTY_STEP
            if since + self._length > asked_at:
                return found
        log.warning("exchange_sent_too_many_pages", feed=self.source, ticker=ticker, pages=PAGES)
        return found


def in_short(error: BaseException) -> str:
    """An error's name and first words: ccxt puts the whole page that an exchange sent into its errors."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:ERROR_CHARS]}"


def to_bar(ticker: str, row: Sequence[float | None], length: timedelta) -> Bar:
    """One row of ccxt's OHLCV as a bar; its `as_of` is the bar's end. Raises `FeedError` for a hole."""
    values = [value for value in row if value is not None]
    if len(row) != 6 or len(values) != len(row):
        raise FeedError(f"{ticker}: the exchange sent a bar with a hole: {list(row)}")
    start, opened, high, low, close, volume = (float(value) for value in values)
    cannot_be = min(opened, high, low, close) <= 0 or high < low or volume < 0
    if cannot_be or not all(math.isfinite(value) for value in (start, opened, high, low, close, volume)):
        raise FeedError(f"{ticker}: the exchange sent a bar that cannot be: {list(row)}")
    return Bar(EPOCH + timedelta(milliseconds=start) + length, opened, high, low, close, volume)
