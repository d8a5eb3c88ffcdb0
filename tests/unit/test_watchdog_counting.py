"""The count: strictly above, so many in a row, a cool-down and a budget, whatever is read and whenever."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.watchdog.counting import Count, Limits, Step, budget_left, judge, restarted

LIMIT = 10_752.0
OVER, AT, WITHIN, NONE = LIMIT + 1, LIMIT, LIMIT - 1, None
Event = tuple[float, float | None]
"""Seconds since the last reading, and the reading."""

readings = st.one_of(st.none(), st.sampled_from([WITHIN, AT]), st.sampled_from([OVER, LIMIT + 2**-20, OVER]))
events = st.lists(st.tuples(st.floats(0, 500), readings), max_size=60)
limits = st.builds(
    Limits,
    limit_mib=st.just(LIMIT),
    readings=st.integers(1, 5),
    cooldown_s=st.floats(0, 2000),
    budget=st.integers(0, 4),
    window_s=st.floats(1, 5000),
)


def watched(events: Sequence[Event], limits: Limits, *, start: float = 0.0, takes_s: float = 0.0) -> list[Step]:
    """What each reading leads to, where each restart takes so long."""
    return [step for _, step in timed(events, limits, start=start, takes_s=takes_s)]


def timed(
    events: Sequence[Event], limits: Limits, *, start: float = 0.0, takes_s: float = 0.0
) -> list[tuple[float, Step]]:
    """The same with the time of each reading, or of the restart's end."""
    count, now, steps = Count(), start, list[tuple[float, Step]]()
    for pause, reading in events:
        now += pause
        count, step = judge(count, reading, now=now, limits=limits)
        if step is Step.RESTART:
            now += takes_s
            count = restarted(count, now=now, limits=limits)
        steps.append((now, step))
    return steps


def plain(readings: int = 3, *, cooldown_s: float = 0, budget: int = 10**6) -> Limits:
    return Limits(LIMIT, readings, cooldown_s, budget, 3600)


def minutely(*values: float | None) -> list[Event]:
    return [(60.0, value) for value in values]


def test_the_third_reading_above_restarts_and_neither_the_first_nor_the_second() -> None:
    assert watched(minutely(OVER, OVER, OVER, OVER), plain()) == [Step.OVER, Step.OVER, Step.RESTART, Step.OVER]


def test_a_reading_at_the_limit_starts_the_count_anew() -> None:
    steps = watched(minutely(OVER, OVER, AT, OVER, OVER, WITHIN, OVER, OVER, OVER), plain())
    assert [at for at, step in enumerate(steps) if step is Step.RESTART] == [8]


def test_an_unreadable_one_neither_counts_nor_forgives() -> None:
    assert watched(minutely(OVER, NONE, OVER, NONE, NONE), plain())[-1] is Step.UNREADABLE
    assert watched(minutely(OVER, NONE, OVER, NONE, OVER), plain())[-1] is Step.RESTART


def test_the_cool_down_begins_where_the_restart_ended() -> None:
    steps = timed(minutely(*[OVER] * 12), plain(cooldown_s=300), takes_s=200)
    ends = [now for now, step in steps if step is Step.RESTART]
    assert ends == [380.0, 880.0]  # ready again at 380 + 300, and the restart takes 200 more
    assert [step for _, step in steps[5:7]] == [Step.COOLING, Step.COOLING]


def test_a_budget_comes_back_when_its_window_has_passed() -> None:
    steps = timed(minutely(*[OVER] * 70), plain(budget=2))
    assert [now for now, step in steps if step is Step.RESTART] == [180.0, 360.0, 3780.0, 3960.0]
    assert next(now for now, step in steps if step is Step.SPENT) == 540.0


def test_a_budget_of_none_only_watches() -> None:
    assert set(watched(minutely(*[OVER] * 9), plain(budget=0))) == {Step.OVER, Step.SPENT}


@given(events, limits, st.floats(0, 600))
def test_restarts_are_never_closer_than_the_cool_down_nor_more_than_the_budget(
    events: list[Event], limits: Limits, takes_s: float
) -> None:
    at = [now for now, step in timed(events, limits, takes_s=takes_s) if step is Step.RESTART]
    for earlier, later in pairwise(at):
        assert later - takes_s - earlier >= limits.cooldown_s - 1e-6
    for end in at:
        assert sum(end - takes_s - limits.window_s + 1e-6 < other <= end for other in at) <= limits.budget


@given(events, limits)
def test_a_restart_has_enough_readings_above_right_before_it(events: list[Event], limits: Limits) -> None:
    since = list[float]()
    for (_, reading), step in zip(events, watched(events, limits), strict=True):
        if reading is not None:
            since.append(reading)
        if step in {Step.RESTART, Step.COOLING, Step.SPENT}:
            assert len(since) >= limits.readings
            assert all(value > LIMIT for value in since[-limits.readings :])
        if step is Step.RESTART:
            since.clear()


@given(events, st.integers(1, 5))
def test_where_nothing_stands_against_it_enough_readings_above_always_restart(events: list[Event], needed: int) -> None:
    in_a_row, expected = 0, list[bool]()
    for _, reading in events:
        in_a_row = in_a_row if reading is None else in_a_row + 1 if reading > LIMIT else 0
        expected.append(reading is not None and in_a_row == needed)
        in_a_row %= needed
    assert [step is Step.RESTART for step in watched(events, plain(needed))] == expected


@given(events, limits, st.data())
def test_unreadable_ones_change_nothing_for_the_others(
    events: list[Event], limits: Limits, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(events)))
    more = [*events[:at], (0.0, None), *events[at:]]
    steps = watched(more, limits)
    assert steps.pop(at) is Step.UNREADABLE
    assert steps == watched(events, limits)


@given(st.lists(st.tuples(st.integers(0, 500).map(float), readings), max_size=40), limits, st.integers(-(10**6), 10**6))
def test_only_differences_of_time_count(events: list[Event], limits: Limits, start: int) -> None:
    whole = Limits(LIMIT, limits.readings, round(limits.cooldown_s), limits.budget, round(limits.window_s))
    assert watched(events, whole, start=start) == watched(events, whole)


@given(st.lists(st.floats(0, 10**5), max_size=20).map(sorted), limits)
def test_the_memory_of_restarts_is_as_short_as_the_budget_allows(times: list[float], limits: Limits) -> None:
    count = Count()
    for now in times:
        count = restarted(count, now=now, limits=limits)
        assert count.in_a_row == 0
        assert all(now - at < max(limits.window_s, limits.cooldown_s) for at in count.restarts)
        made = sum(now - other < limits.window_s for other in times[: times.index(now) + times.count(now)])
        assert budget_left(count, now=now, limits=limits) >= max(0, limits.budget - made)
