"""Trading calendars: sessions, closes, bounds."""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.calendar import CalendarError, ExchangeCalendar, open_calendar

XNYS = open_calendar("XNYS")
days = st.dates(date(1990, 1, 2), date(2026, 1, 1))
moments = st.datetimes(datetime(1990, 1, 3), datetime(2025, 12, 31)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001


def test_thanksgiving_week_has_no_thursday() -> None:
    tuesday = date(2012, 11, 20)
    assert XNYS.sessions_between(tuesday, date(2012, 11, 23)) == 2
    assert XNYS.sessions_between(tuesday, date(2012, 11, 26)) == 3
    assert XNYS.expected_bars(tuesday, date(2012, 11, 26)) == 4


def test_a_weekend_has_no_session_and_a_day_is_no_session_away_from_itself() -> None:
    assert XNYS.sessions_between(date(2012, 11, 16), date(2012, 11, 18)) == 0
    assert XNYS.expected_bars(date(2012, 11, 17), date(2012, 11, 18)) == 0
    assert XNYS.sessions_between(date(2012, 11, 16), date(2012, 11, 16)) == 0


@given(days, days)
def test_backwards_is_minus_forwards(a: date, b: date) -> None:
    forwards, backwards = XNYS.sessions_between(a, b), XNYS.sessions_between(b, a)
    assert forwards is not None
    assert backwards == -forwards


@given(days, days, days)
def test_sessions_add_up(a: date, b: date, c: date) -> None:
    parts = XNYS.sessions_between(a, b), XNYS.sessions_between(b, c)
    assert None not in parts
    assert XNYS.sessions_between(a, c) == sum(part for part in parts if part is not None)


@pytest.mark.parametrize(
    ("moment", "n", "expected"),
    [
        ("2012-11-20T21:00:00+00:00", 2, "2012-11-23T18:00:00+00:00"),  # to the early close after Thanksgiving
        ("2012-11-23T18:00:00+00:00", 1, "2012-11-26T21:00:00+00:00"),  # and from it to an ordinary one
        ("2013-03-08T21:00:00+00:00", 1, "2013-03-11T20:00:00+00:00"),  # the close follows summer time
        ("2013-03-08T00:00:00+00:00", 1, "2013-03-11T00:00:00+00:00"),  # stamps of daily bars stay at midnight
        ("2013-03-08T15:00:00+00:00", 1, "2013-03-11T14:00:00+00:00"),  # the exchange's clock stays the same
        ("2012-11-20T21:00:00+00:00", 0, "2012-11-20T21:00:00+00:00"),
    ],
)
def test_a_horizon_ends_where_its_kind_of_stamp_does(moment: str, n: int, expected: str) -> None:
    assert XNYS.add_sessions(datetime.fromisoformat(moment), n) == datetime.fromisoformat(expected)


@given(moments, st.integers(1, 30))
def test_adding_sessions_lands_on_a_session_that_many_later(moment: datetime, n: int) -> None:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    for stamp, zone in ((midnight, UTC), (moment.replace(minute=1), ZoneInfo("America/New_York"))):
        end = XNYS.add_sessions(stamp, n)
        assert end is not None
        local, start = end.astimezone(zone), stamp.astimezone(zone)
        assert XNYS.sessions_between(start.date(), local.date()) == n
        assert XNYS.expected_bars(local.date(), local.date()) == 1


def test_out_of_bounds_is_none() -> None:
    assert isinstance(XNYS, ExchangeCalendar)
    early, late = XNYS.first - timedelta(days=1), XNYS.last + timedelta(days=1)
    assert XNYS.sessions_between(early, date(2012, 1, 1)) is None
    assert XNYS.sessions_between(date(2012, 1, 1), late) is None
    assert XNYS.expected_bars(date(2012, 1, 1), late) is None
    assert XNYS.add_sessions(datetime(1985, 1, 1, tzinfo=UTC), 1) is None
    assert XNYS.add_sessions(datetime(2020, 1, 2, 21, tzinfo=UTC), 100_000) is None


def test_a_datetime_counts_as_its_utc_day() -> None:
    late_in_new_york = datetime.fromisoformat("2012-11-19T23:00:00-05:00")
    assert XNYS.sessions_between(late_in_new_york, date(2012, 11, 21)) == 1


@given(moments, st.integers(0, 400))
def test_24_7_counts_days(moment: datetime, n: int) -> None:
    calendar = open_calendar("24/7")
    end = calendar.add_sessions(moment, n)
    assert end is not None
    assert end == moment + timedelta(days=n)
    assert calendar.sessions_between(moment, end) == n
    assert calendar.expected_bars(moment, end) == n + 1
    assert calendar.expected_bars(end, moment) == (1 if n == 0 else 0)


def test_24_7_ends_with_the_years() -> None:
    assert open_calendar("24/7").add_sessions(datetime(9999, 12, 31, tzinfo=UTC), 1) is None


def test_bars_knows_nothing() -> None:
    calendar = open_calendar("bars")
    assert calendar.sessions_between(date(2012, 1, 1), date(2012, 1, 2)) is None
    assert calendar.add_sessions(datetime(2012, 1, 1, tzinfo=UTC), 1) is None
    assert calendar.expected_bars(date(2012, 1, 1), date(2012, 1, 2)) is None


@pytest.mark.parametrize("name", ["bars", "24/7", "XNYS"])
def test_a_naive_moment_or_a_step_back_is_refused(name: str) -> None:
    calendar = open_calendar(name)
    with pytest.raises(ValueError, match="timezone"):
        calendar.add_sessions(datetime(2012, 1, 1), 1)  # noqa: DTZ001
    with pytest.raises(ValueError, match="negative"):
        calendar.add_sessions(datetime(2012, 1, 1, tzinfo=UTC), -1)


def test_an_unknown_calendar_is_named() -> None:
    with pytest.raises(CalendarError, match="'NOPE'"):
        open_calendar("NOPE")


def test_a_calendar_is_opened_once() -> None:
    assert open_calendar("XNYS") is XNYS


def test_a_calendar_without_early_holidays_opens_from_its_own_start() -> None:
    saudi = open_calendar("XSAU")
    assert isinstance(saudi, ExchangeCalendar)
    assert saudi.first >= date(2021, 1, 1)
    assert saudi.sessions_between(date(2022, 1, 6), date(2022, 1, 9)) == 1  # Friday and Saturday are the weekend there


def test_without_an_exchange_the_library_is_not_imported() -> None:
    code = "import sys; from libs.calendar import open_calendar; open_calendar('bars'); open_calendar('24/7'); "
    code += "sys.exit('exchange_calendars' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
