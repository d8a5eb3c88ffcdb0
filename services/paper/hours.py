"""When the market is open: always, or during the sessions of New York."""

from datetime import UTC, datetime, time, timedelta
from typing import Literal, Protocol, TypeAlias
from zoneinfo import ZoneInfo

from libs.calendar import ALWAYS, Calendar, CalendarError, open_calendar

Market: TypeAlias = Literal["24/7", "XNYS"]

NEW_YORK = ZoneInfo("America/New_York")
OPENING = time(9, 30)
A_CLOSE = datetime(1990, 1, 2, 21, tzinfo=UTC)
"""The close of the first session the calendar knows, from which any other is counted."""
LONGEST_BREAK_DAYS = 12
DAY = timedelta(days=1)


def midnight(moment: datetime) -> datetime:
    """The last UTC midnight, the moment itself included."""
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


class Hours(Protocol):
    """The hours of a market; every moment is aware UTC."""

    def is_open(self, moment: datetime) -> bool:
        """Whether it trades."""
        ...

    def next_open(self, moment: datetime) -> datetime:
        """The first opening after the moment."""
        ...

    def next_close(self, moment: datetime) -> datetime:
        """The first close after the moment: where a day order ends."""
        ...


class AlwaysOpen:
    """A market that never closes: one session runs into the next at midnight UTC."""

    def is_open(self, moment: datetime) -> bool:
        """True."""
        del moment
        return True

    def next_open(self, moment: datetime) -> datetime:
        """The next midnight."""
        return midnight(moment) + DAY

    def next_close(self, moment: datetime) -> datetime:
        """The next midnight."""
        return midnight(moment) + DAY


class NewYork:
    """The sessions of the New York Stock Exchange: from 9:30 to the close that the calendar knows."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar

    def is_open(self, moment: datetime) -> bool:
        """Whether the moment lies in a session, its opening included, its close not."""
        session = self._session(moment.astimezone(NEW_YORK))
        return session is not None and session[0] <= moment < session[1]

    def next_open(self, moment: datetime) -> datetime:
        """See `Hours`; raises `CalendarError` where the calendar ends."""
        return self._after(moment)[0]

    def next_close(self, moment: datetime) -> datetime:
        """See `Hours`; raises `CalendarError` where the calendar ends."""
        return self._after(moment)[1]

    def _after(self, moment: datetime) -> tuple[datetime, datetime]:
        """The first opening and the first close after the moment."""
        opens: datetime | None = None
        closes: datetime | None = None
        local = moment.astimezone(NEW_YORK)
        for days in range(LONGEST_BREAK_DAYS):
            session = self._session(local + days * DAY)
            if session is None:
                continue
            opens = opens or (session[0] if session[0] > moment else None)
            closes = closes or (session[1] if session[1] > moment else None)
            if opens is not None and closes is not None:
                return opens, closes
        raise CalendarError(f"the calendar XNYS does not know the sessions after {moment:%Y-%m-%d}")

    def _session(self, local: datetime) -> tuple[datetime, datetime] | None:
        """Opening and close of the session on a New York day, None where there is none."""
        day = local.date()
        if self._calendar.expected_bars(day, day) != 1:
            return None
        count = self._calendar.sessions_between(A_CLOSE.date(), day)
        close = None if count is None else self._calendar.add_sessions(A_CLOSE, count)
        if close is None:
            return None
        return datetime.combine(day, OPENING, NEW_YORK).astimezone(UTC), close


def open_hours(market: Market) -> Hours:
    """The hours of that market. New York's calendar takes a second to open."""
    return AlwaysOpen() if market == ALWAYS else NewYork(open_calendar(market))
