"""The report on shadow: what it counts, when it dares to conclude, and which way."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.shadow.report import LEAST_DAYS, LEAST_ENTRIES, Report, Sums, report
from libs.statistics.intervals import Estimate
from libs.trading.reasons import Kind, Reason

DAY0 = date(2012, 8, 30)
ALLOWED = Sums(DAY0, "1d", "1.0.0", "", "allow", ("ALLOW",), 4, 0, 4, 0.0, 2, 0.0)
BLOCKED = replace(ALLOWED, would_have="deny", reasons=("POLICY_DENY",))


def days(number: int, *, allowed: float, blocked: float) -> list[Sums]:
    """Four entries of each kind a day, with mean returns that sway by a thousandth from day to day."""
    rows: list[Sums] = []
    for day in range(number):
        sway = 0.001 * (day % 3 - 1)
        when = DAY0 + timedelta(days=day)
        rows.append(replace(ALLOWED, day=when, made=4 * (allowed + sway)))
        rows.append(replace(BLOCKED, day=when, made=4 * (blocked - sway)))
    return rows


@pytest.mark.parametrize(
    ("allowed", "blocked", "words"),
    [
        (0.01, -0.01, "The allowed did better by 2.00 percentage points"),
        (-0.01, 0.01, "The blocked did better by 2.00 percentage points"),
        (0.0001, 0.0, "cannot be told from chance"),
    ],
)
def test_it_concludes_what_the_interval_of_the_difference_says(allowed: float, blocked: float, words: str) -> None:
    made = report(days(12, allowed=allowed, blocked=blocked))
    assert made.enough_data
    assert words in made.summary
    assert "for enforcing" in made.summary or "against enforcing" in made.summary


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.kind is Kind.HARD])
def test_what_is_denied_in_shadow_too_is_set_aside(reason: Reason) -> None:
    aside = replace(BLOCKED, reasons=("POLICY_DENY", reason.value), made=400.0)
    rows = days(12, allowed=0.01, blocked=-0.01)
    without, with_it = report(rows), report([*rows, aside])
    assert with_it.whole == without.whole
    assert (with_it.total, with_it.refused_anyway) == (without.total + 4, 4)
    assert "Another 4 were refused for limits, in every mode." in with_it.summary
    assert with_it.by_reason[reason.value].entries == 4


SUMS = st.builds(
    Sums,
    day=st.none() | st.integers(0, 30).map(lambda number: DAY0 + timedelta(days=number)),
    horizon=st.sampled_from(["1d", "5d", None]),
    prompt_version=st.sampled_from(["1.0.0", "1.1.0", None]),
    arm=st.sampled_from(["", "1.1.0", None]),
    would_have=st.sampled_from(["allow", "deny"]),
    reasons=st.lists(st.sampled_from([*(reason.value for reason in Reason), "OF_LATER"]), max_size=3).map(tuple),
    entries=st.just(50),
    without_forecast=st.just(0),
    settled=st.integers(0, 50),
    made=st.floats(-10, 10),
    hits=st.just(0),
    money=st.floats(-1e6, 1e6),
)


def counts(made: Report) -> tuple[object, ...]:
    """What does not depend on the order of additions."""
    groups = [made.whole.allowed, made.whole.blocked]
    return made.total, made.refused_anyway, made.enough_data, [(each.entries, each.settled) for each in groups]


@given(st.lists(SUMS, max_size=40).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_it_answers_for_anything_whatever_the_order_and_loses_nobody(rows: tuple[list[Sums], list[Sums]]) -> None:
    made, other = report(rows[0]), report(rows[1])
    assert counts(made) == counts(other)
    whole = made.whole
    assert whole.allowed.entries + whole.blocked.entries + made.refused_anyway == made.total == 50 * len(rows[0])
    assert sum(each.allowed.entries + each.blocked.entries for each in made.by_version.values()) == (
        made.total - made.refused_anyway
    )
    if made.enough_data:
        assert min(whole.allowed.settled, whole.blocked.settled) >= 30
        assert whole.difference is not None
    else:
        assert made.summary.startswith("not enough data yet: ")


@given(st.lists(SUMS, max_size=40))
def test_there_is_no_difference_where_either_side_has_too_few_outcomes_for_one(rows: list[Sums]) -> None:
    made = report(rows)
    for split in (made.whole, *made.by_version.values()):
        sides = (split.allowed, split.blocked)
        enough = [each.settled >= LEAST_ENTRIES and each.market_days >= LEAST_DAYS for each in sides]
        assert (split.difference is not None) == all(enough)
        if split.difference is not None:
            assert None not in {each.mean_return for each in sides}
    assert made.enough_data == (made.whole.difference is not None)


def returned(row: Sums) -> st.SearchStrategy[list[Sums]]:
    """Some days of what may be compared: four entries on each, whose sum is anything a return may be."""
    sums = st.lists(st.floats(-1, 1), min_size=LEAST_DAYS, max_size=3 * LEAST_DAYS)
    return sums.map(lambda made: [replace(row, made=each) for each in made])


@given(returned(ALLOWED), returned(BLOCKED))
def test_a_difference_is_never_surer_than_what_it_is_made_of(allowed: list[Sums], blocked: list[Sums]) -> None:
    """No day is common to both here, so that nothing cancels."""
    rows = [replace(row, day=DAY0 + timedelta(days=number)) for number, row in enumerate((*allowed, *blocked))]
    whole = report(rows).whole
    assert whole.difference is not None
    for side in (whole.allowed, whole.blocked):
        assert side.mean_return is not None
        assert width(whole.difference) >= width(side.mean_return) * (1 - 1e-9)


def width(found: Estimate) -> float:
    return found.high - found.low


def test_three_blocked_entries_beside_many_allowed_say_nothing() -> None:
    few = [replace(BLOCKED, day=DAY0 + timedelta(days=number), entries=1, settled=1, made=-0.01) for number in range(3)]
    made = report([*(row for row in days(20, allowed=0.01, blocked=0.0) if row.fate == "allowed"), *few])
    assert made.whole.difference is None
    assert [split.difference for split in made.by_version.values()] == [None]
    assert made.summary.startswith(
        "not enough data yet: 80 allowed entries and 3 blocked with an outcome, over 20 and 3 market days; "
    )
