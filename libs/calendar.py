"""Trading calendars: how many sessions lie between two days, and when a horizon ends.

Three kinds answer the same three questions:

- a code of `exchange_calendars` ("XNYS", "XLON", …): that exchange's sessions, within the dates the library knows;
- "24/7": every UTC day is a session, without bounds;
- "bars": no calendar is known, every answer is None, and whatever depends on it counts as unknown.

None always means "this calendar cannot say": there is no calendar, or the date lies outside its bounds.
"""

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

BARS = "bars"
ALWAYS = "24/7"
EARLIEST = "1990-01-01"
MIDNIGHT = time(0)


class CalendarError(Exception):
    """A calendar cannot be opened; the message names it."""


class Calendar(Protocol):
    """The sessions of a market. A `datetime` given as a day counts as its UTC date."""

    @property
    def name(self) -> str:
        """The name the calendar was opened under."""
        ...

    def sessions_between(self, start: date, end: date) -> int | None:
        """Sessions after `start` up to and including `end`: 0 for the same day, negative when `end` is earlier."""
        ...

    def add_sessions(self, moment: datetime, n: int) -> datetime | None:
        """The moment `n` sessions after the (timezone-aware) `moment`, in UTC; `n` is not negative.

        A moment that is a session's close leads to a close; midnight UTC, the usual stamp of daily bars, to midnight
        UTC; any other moment keeps its time of day on the exchange's clock.
        """
        ...

    def expected_bars(self, start: date, end: date) -> int | None:
        """How many daily bars there should be from `start` to `end`, both included."""
        ...


def utc_day(moment: date) -> date:
    """The UTC date of a moment; a naive one is taken as UTC."""
    if isinstance(moment, datetime):
        return moment.astimezone(UTC).date() if moment.tzinfo else moment.date()
    return moment


def check_step(moment: datetime, n: int) -> None:
    """Refuse what no calendar can answer: a moment without a zone, a step back."""
    if moment.tzinfo is None:
        raise ValueError("moment must be timezone-aware")
    if n < 0:
        raise ValueError("n must not be negative")


class NoCalendar:
    """Nothing is known beyond the bars themselves, so every answer is None."""

    name = BARS

    def sessions_between(self, start: date, end: date) -> int | None:
        """None: unknown."""
        del start, end
        return None

    def add_sessions(self, moment: datetime, n: int) -> datetime | None:
        """None: unknown."""
        check_step(moment, n)
        return None

    def expected_bars(self, start: date, end: date) -> int | None:
        """None: unknown."""
        del start, end
        return None


class AlwaysOpen:
    """Every UTC day is a session."""

    name = ALWAYS

    def sessions_between(self, start: date, end: date) -> int | None:
        """Days from `start` to `end`."""
        return (utc_day(end) - utc_day(start)).days

    def add_sessions(self, moment: datetime, n: int) -> datetime | None:
        """`n` times 24 hours later; None past the last year Python can write."""
        check_step(moment, n)
        try:
            return moment.astimezone(UTC) + timedelta(days=n)
        except OverflowError:
            return None

    def expected_bars(self, start: date, end: date) -> int | None:
        """Days from `start` to `end`, both included; 0 when `end` is earlier."""
        return max(0, (utc_day(end) - utc_day(start)).days + 1)


class ExchangeCalendar:
    """The sessions of one exchange, held as two sorted arrays so that a question costs microseconds."""

    def __init__(self, name: str, *, days: NDArray[np.datetime64], closes: NDArray[np.datetime64], zone: str) -> None:
        """`days` are session dates (`datetime64[D]`), `closes` their UTC closes (`datetime64[s]`), same length."""
        self.name = name
        self._days = days
        self._closes = closes
        self._zone = ZoneInfo(zone)

    @property
    def first(self) -> date:
        """The first day about which the calendar can answer."""
        return self._days[0].astype(object)

    @property
    def last(self) -> date:
        """The last day about which the calendar can answer."""
        return self._days[-1].astype(object)

    def _covers(self, day: date) -> bool:
        return self.first <= day <= self.last

    def _until(self, day: date) -> int:
        """How many sessions there are up to and including `day`."""
        return int(np.searchsorted(self._days, np.datetime64(day, "D"), side="right"))

    def sessions_between(self, start: date, end: date) -> int | None:
        """Sessions in (start, end], negative backwards; None when either day is out of bounds."""
        start, end = utc_day(start), utc_day(end)
        if not (self._covers(start) and self._covers(end)):
            return None
        return self._until(end) - self._until(start)

    def add_sessions(self, moment: datetime, n: int) -> datetime | None:
        """See `Calendar`; None when the day or the answer is out of bounds."""
        check_step(moment, n)
        moment = moment.astimezone(UTC)
        zone = UTC if moment.time() == MIDNIGHT else self._zone
        local = moment.astimezone(zone)
        if not self._covers(local.date()):
            return None
        position = self._until(local.date()) - 1
        target = position + n
        if n == 0:
            return moment
        if target >= len(self._days):
            return None
        if moment.replace(tzinfo=None) == self._closes[position].astype(object):
            return self._closes[target].astype(object).replace(tzinfo=UTC)
        day: date = self._days[target].astype(object)
        return datetime.combine(day, local.time(), zone).astimezone(UTC)

    def expected_bars(self, start: date, end: date) -> int | None:
        """Sessions in [start, end]; None when either day is out of bounds, 0 when `end` is earlier."""
        start, end = utc_day(start), utc_day(end)
        if not (self._covers(start) and self._covers(end)):
            return None
        before = int(np.searchsorted(self._days, np.datetime64(start, "D"), side="left"))
        return max(0, self._until(end) - before)


@lru_cache(maxsize=16)
def open_calendar(name: str) -> Calendar:
    """The calendar of that name; one object per name and process.

    Opening an exchange costs a second once (the library's import and its holiday rules), so open it at start, not on
    an event loop that serves. Sessions reach from 1990, or the library's own bound, to about a year from now. Raises
    `CalendarError` naming an unknown calendar.
    """
    if name == BARS:
        return NoCalendar()
    if name == ALWAYS:
        return AlwaysOpen()
    return open_exchange(name)


def open_exchange(name: str) -> ExchangeCalendar:
    """Read an exchange's sessions out of `exchange_calendars`, imported here since "bars" and "24/7" do without."""
    import exchange_calendars
    from exchange_calendars.errors import InvalidCalendarName

    try:
        try:
            source = exchange_calendars.get_calendar(name, start=EARLIEST)
        except ValueError:  # this calendar's holidays are not recorded that far back
            source = exchange_calendars.get_calendar(name)
    except InvalidCalendarName as error:
        raise CalendarError(f'unknown calendar {name!r}: use "bars", "24/7" or an exchange such as "XNYS"') from error
    return ExchangeCalendar(
        name,
        days=np.asarray(source.sessions, dtype="datetime64[D]"),
        closes=np.asarray(source.closes, dtype="datetime64[s]"),
        zone=str(source.tz),
    )
