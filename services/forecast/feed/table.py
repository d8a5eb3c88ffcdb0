"""Bars of many tickers held in memory as arrays: what every feed answers ticks and histories from."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from libs.judgement.bars import Bars
from services.forecast.feed.types import Bar, Tick

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_moment(stamp: np.datetime64) -> datetime:
    """An aware UTC datetime from a `datetime64`."""
    return EPOCH + timedelta(seconds=int(stamp.astype("datetime64[s]").astype(np.int64)))


def to_stamp(moment: datetime) -> np.datetime64:
    """A `datetime64[s]` from an aware datetime."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "s")


def make_history(bars: Sequence[Bar]) -> Bars:
    """Arrays from bars that are sorted by `as_of`."""
    values = np.array([(b.open, b.high, b.low, b.close, b.volume) for b in bars], dtype=np.float64).reshape(-1, 5)
    stamps = np.array([b.as_of.astimezone(UTC).replace(tzinfo=None) for b in bars], dtype="datetime64[s]")
    columns = [np.ascontiguousarray(values[:, i]) for i in range(5)]
    return Bars(stamps, *columns)


def cut(history: Bars, start: int, stop: int) -> Bars:
    """The bars from `start` up to but not including `stop`, as views."""
    part = slice(start, stop)
    return Bars(
        as_of=history.as_of[part],
        open=history.open[part],
        high=history.high[part],
        low=history.low[part],
        close=history.close[part],
        volume=history.volume[part],
    )


class BarTable:
    """Histories by ticker with the union of their moments."""

    def __init__(self, series: Mapping[str, Bars]) -> None:
        self.series = dict(series)
        stamps = [history.as_of for history in self.series.values()]
        self._moments: NDArray[np.datetime64] = (
            np.unique(np.concatenate(stamps)) if stamps else np.array([], dtype="datetime64[s]")
        )

    def next_moment(self, after: datetime | None, not_before: datetime | None = None) -> datetime | None:
        """The earliest moment any ticker has a bar, later than `after` and not earlier than `not_before`."""
        position = 0 if after is None else int(np.searchsorted(self._moments, to_stamp(after), side="right"))
        if not_before is not None:
            position = max(position, int(np.searchsorted(self._moments, to_stamp(not_before), side="left")))
        return to_moment(self._moments[position]) if position < len(self._moments) else None

    def last_moment(self) -> datetime | None:
        """The newest moment of all."""
        return to_moment(self._moments[-1]) if len(self._moments) else None

    def tick(self, moment: datetime) -> Tick:
        """The bars that end exactly then."""
        stamp = to_stamp(moment)
        bars: dict[str, Bar] = {}
        for ticker, history in self.series.items():
            position = int(np.searchsorted(history.as_of, stamp))
            if position < len(history) and history.as_of[position] == stamp:
                bars[ticker] = Bar(
                    as_of=moment,
                    open=float(history.open[position]),
                    high=float(history.high[position]),
                    low=float(history.low[position]),
                    close=float(history.close[position]),
                    volume=float(history.volume[position]),
                )
        return Tick(moment, bars)

    def history(self, ticker: str, as_of: datetime, bars: int) -> Bars:
        """The last bars of a ticker up to and including a moment."""
        history = self.series[ticker]
        stop = int(np.searchsorted(history.as_of, to_stamp(as_of), side="right"))
        return cut(history, max(0, stop - bars), stop)

    def days(self, as_of: datetime, count: int) -> tuple[date, ...]:
        """The last UTC days, up to a moment, on which any ticker has a bar."""
        stop = int(np.searchsorted(self._moments, to_stamp(as_of), side="right"))
        days: NDArray[np.datetime64] = np.unique(self._moments[max(0, stop - count) : stop].astype("datetime64[D]"))
        return tuple(day.astype(object) for day in days)

    def ready_moment(self, bars: int, *, every: bool) -> datetime | None:
        """The moment from which a ticker has that many bars: every ticker, or the first one. None if never."""
        ready = [to_moment(h.as_of[bars - 1]) for h in self.series.values() if len(h) >= bars]
        if not ready or (every and len(ready) < len(self.series)):
            return None
        return max(ready) if every else min(ready)
