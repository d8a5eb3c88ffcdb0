"""The bundled feed: daily bars of five large US stocks, 2000 to 2013, from the wheel `bokeh-sampledata`.

Prices are real and old. Every large model has read them, so nothing made from them is evidence of skill.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np

from libs.judgement.bars import Bars
from services.forecast.feed.table import BarTable
from services.forecast.feed.types import MIN_BARS, FeedError, Run, Tick

NEW_YORK = ZoneInfo("America/New_York")
CLOSING_TIME = time(16, 0)
BUNDLED = ("AAPL", "FB", "GOOG", "IBM", "MSFT")


class SampleColumns(Protocol):
    """How the wheel hands out one stock: lists by column name."""

    def __getitem__(self, name: str, /) -> Sequence[str | float]: ...


def session_close(day: date) -> datetime:
    """The end of a New York session in UTC."""
    return datetime.combine(day, CLOSING_TIME, NEW_YORK).astimezone(UTC)


def adjusted(columns: SampleColumns) -> Bars:
    """One stock as arrays, adjusted for splits and dividends.

    The wheel's open, high, low and close are as traded; `adj_close / close` is the source's factor for each day.
    Prices are multiplied by it and volume is divided by it, so that price times volume stays the dollars traded.
    """
    close = np.array(columns["close"], dtype=np.float64)
    factor = np.array(columns["adj_close"], dtype=np.float64) / close
    moments = [session_close(date.fromisoformat(str(day))).replace(tzinfo=None) for day in columns["date"]]
    return Bars(
        as_of=np.array(moments, dtype="datetime64[s]"),
        open=np.array(columns["open"], dtype=np.float64) * factor,
        high=np.array(columns["high"], dtype=np.float64) * factor,
        low=np.array(columns["low"], dtype=np.float64) * factor,
        close=close * factor,
        volume=np.array(columns["volume"], dtype=np.float64) / factor,
    )


def load_bundled(tickers: Sequence[str]) -> BarTable:
    """Read the chosen stocks from the installed wheel; none chosen means all. Raises `FeedError`."""
    chosen = tuple(tickers) or BUNDLED
    unknown = [ticker for ticker in chosen if ticker not in BUNDLED]
    if unknown:
        raise FeedError(f"FORECAST_TICKERS: the bundled data has no {', '.join(unknown)}; it has {', '.join(BUNDLED)}")
    from bokeh_sampledata import stocks

    return BarTable({ticker: adjusted(getattr(stocks, ticker)) for ticker in chosen})


class ReplayFeed:
    """Bundled bars, one session per tick, from the first day on which every chosen ticker has enough history.

    Runs are numbered: the end of the data ends `replay:1`, and the next run starts over as `replay:2`. Histories
    come from the data, so a new run begins with the same past as the first.
    """

    source = "replay"

    def __init__(self, tickers: Sequence[str] = ()) -> None:
        self._chosen = tuple(tickers)
        self._table = BarTable({})
        self._start: datetime | None = None

    def run_name(self, previous: Run | None) -> str:
        """`replay:1` at first; the same run until it reached its end; then the next number."""
        if previous is None:
            return "replay:1"
        number = int(previous.name.partition(":")[2])
        return f"replay:{number + 1}" if previous.done else previous.name

    async def open(self) -> None:
        """Read the installed data."""
        self._table = await asyncio.to_thread(load_bundled, self._chosen)
        self._start = self._table.ready_moment(MIN_BARS, every=True)

    async def close(self) -> None:
        """Nothing is held."""

    async def next(self, after: datetime | None) -> Tick | None:
        """The session after this moment, None at the end of the data."""
        moment = self._table.next_moment(after, self._start)
        return None if moment is None else self._table.tick(moment)

    def ended(self, after: datetime | None) -> bool:
        """Whether the data ends here."""
        return self._table.next_moment(after, self._start) is None

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last bars up to a moment."""
        return self._table.history(ticker, as_of, bars)

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The last days with a bar up to a moment."""
        return self._table.days(as_of, count)
