"""A ticker's daily bars as arrays, cut at a moment, and what can be read off them without a model."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from libs.calendar import Calendar

LIQUIDITY_SESSIONS = 20
COVERAGE_SESSIONS = 60

Floats = NDArray[np.float64]
Moments = NDArray[np.datetime64]


@dataclass(frozen=True, slots=True)
class Bars:
    """Daily bars, oldest first: `as_of` is each bar's end (`datetime64[s]`, UTC), prices and volume are adjusted.

    All arrays have the same length. Volume is in shares (or units of the base currency).
    """

    as_of: Moments
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be one history: `ValueError` naming what is wrong."""
        columns = (self.open, self.high, self.low, self.close, self.volume)
        if any(column.shape != self.as_of.shape or column.ndim != 1 for column in columns):
            raise ValueError("bars: the columns differ in length")
        if self.as_of.size > 1 and not bool(np.all(self.as_of[1:] > self.as_of[:-1])):
            raise ValueError("bars: as_of must rise from bar to bar")

    def __len__(self) -> int:
        """How many bars there are."""
        return int(self.as_of.size)

    def where(self, keep: NDArray[np.bool_]) -> "Bars":
        """The bars a mask picks."""
        return Bars(
            as_of=self.as_of[keep],
            open=self.open[keep],
            high=self.high[keep],
            low=self.low[keep],
            close=self.close[keep],
            volume=self.volume[keep],
        )

    def until(self, moment: datetime) -> "Bars":
        """The bars that had ended by `moment` and can be used: prices finite and positive, volume finite, not negative.

        A bar that cannot be used counts as absent, so it costs coverage instead of becoming a number.
        """
        usable = self.as_of <= utc64(moment)
        for price in (self.open, self.high, self.low, self.close):
            usable &= np.isfinite(price) & (price > 0)
        return self.where(usable & np.isfinite(self.volume) & (self.volume >= 0))

    def days_between(self, first: date, last: date) -> set[date]:
        """The UTC dates from `first` to `last` that have a bar."""
        days = self.as_of.astype("datetime64[D]")
        begin = int(np.searchsorted(days, np.datetime64(first, "D"), side="left"))
        end = int(np.searchsorted(days, np.datetime64(last, "D"), side="right"))
        return set(days[begin:end].tolist())


def utc64(moment: datetime) -> np.datetime64:
    """A timezone-aware moment as numpy writes it."""
    if moment.tzinfo is None:
        raise ValueError("moment must be timezone-aware")
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def liquidity_usd(bars: Bars) -> float | None:
    """Median of close times volume over the last 20 bars, in the quote currency; None without 20 bars."""
    if len(bars) < LIQUIDITY_SESSIONS:
        return None
    with np.errstate(over="ignore"):
        turnover = bars.close[-LIQUIDITY_SESSIONS:] * bars.volume[-LIQUIDITY_SESSIONS:]
    median = float(np.median(turnover))
    return median if isfinite(median) else None


def coverage_pct(bars: Bars, as_of: datetime, *, calendar: Calendar, feed_days: tuple[date, ...] = ()) -> float | None:
    """Bars present among those expected in the last 60 sessions up to `as_of`, in percent, 0 to 100.

    The calendar says which sessions there were. Where it cannot, the days on which any ticker of the feed had a bar
    (`feed_days`) stand in; with neither it is None. With a single ticker in the feed the stand-in sees no holes.
    """
    end = as_of.astimezone(UTC).date()
    first = first_of_last_sessions(calendar, end)
    if first is not None:
        return min(100.0, 100.0 * len(bars.days_between(first, end)) / COVERAGE_SESSIONS)
    expected = sorted({day for day in feed_days if day <= end})[-COVERAGE_SESSIONS:]
    if not expected:
        return None
    return 100.0 * len(bars.days_between(expected[0], end).intersection(expected)) / len(expected)


@lru_cache(maxsize=64)
def first_of_last_sessions(calendar: Calendar, end: date) -> date | None:
    """The day on which the last 60 sessions up to `end` began, found by halving; None where the calendar is silent.

    Kept for a few days and calendars, since every ticker of a tick asks the same.
    """
    low, high = 1, COVERAGE_SESSIONS * 4
    if (calendar.expected_bars(day_before(end, high), end) or 0) < COVERAGE_SESSIONS:
        return None
    while low < high:
        middle = (low + high) // 2
        if (calendar.expected_bars(day_before(end, middle), end) or 0) >= COVERAGE_SESSIONS:
            high = middle
        else:
            low = middle + 1
    return day_before(end, low)


def day_before(end: date, days: int) -> date:
    """`days` days earlier, or the first day there is."""
    return date.fromordinal(max(1, end.toordinal() - days))
