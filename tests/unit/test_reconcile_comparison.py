"""Comparing our record with the broker's, as a pure function."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from libs.trading.broker.types import BrokerPosition
from services.jobs.reconcile.differences import (
    Difference,
    Fill,
    Kind,
    adopt,
    compare_positions,
    sort_out,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
QUANTITIES = st.decimals(min_value=-1000, max_value=1000, places=4, allow_nan=False)


def position(ticker: str, qty: Decimal) -> BrokerPosition:
    return BrokerPosition(ticker, qty, qty, Decimal(100), Decimal(101))


def compare(
    actual: Decimal, expected: Decimal, fills: Sequence[Decimal] = ()
) -> tuple[Decimal | None, list[Difference]]:
    """What is expected of A from now on, None where nothing is kept of it, and the differences."""
    held = {"A": position("A", actual)} if actual else {}
    came = [Fill("A", qty, NOW + timedelta(seconds=number)) for number, qty in enumerate(fills)]
    settled, found = compare_positions(held, {"A": expected}, list(reversed(came)), NOW)
    (one,) = settled
    return one.expected_qty, found


@given(QUANTITIES, st.lists(QUANTITIES, max_size=5), st.integers(0, 5))
def test_a_position_between_any_two_fills_is_explained(expected: Decimal, fills: list[Decimal], seen: int) -> None:
    actual = expected + sum(fills[:seen], Decimal(0))
    now_expected, found = compare(actual, expected, fills)
    assert found == []
    assert now_expected == expected + sum(fills, Decimal(0))


@given(QUANTITIES, QUANTITIES)
def test_without_fills_only_an_equal_position_is_explained(actual: Decimal, expected: Decimal) -> None:
    _, found = compare(actual, expected)
    assert (found == []) == (actual == expected)


@given(QUANTITIES, QUANTITIES)
def test_the_brokers_word_is_taken_for_what_differs_and_then_nothing_does(actual: Decimal, expected: Decimal) -> None:
    settled, found = compare_positions({"A": position("A", actual)}, {"A": expected}, (), NOW)
    adopted = adopt(settled, {each.subject for each in found})
    _, again = compare_positions(
        {"A": position("A", actual)}, {each.ticker: each.expected_qty for each in adopted}, (), NOW
    )
    assert again == []


def test_what_is_off_by_the_same_is_the_same_difference() -> None:
    (first,) = compare(Decimal(12), Decimal(10))[1]
    (moved,) = compare(Decimal("15.0"), Decimal(13))[1]
    (other,) = compare(Decimal(15), Decimal(12))[1]
    assert first.key == moved.key != other.key
    assert sort_out([moved, other], [first]).confirmed == (moved,)
    assert sort_out([moved, other], [first]).suspected == (other,)


def test_a_difference_survives_its_row() -> None:
    kept = Difference(Kind.POSITION_DIFFERS, "AAPL", "words", NOW, mark="2.5")
    assert Difference.from_json(kept.as_json()) == kept


def test_what_is_nothing_to_both_is_not_kept() -> None:
    settled, _ = compare_positions({}, {"A": Decimal(0), "B": Decimal(3)}, (), NOW)
    assert [each.ticker for each in adopt(settled, set())] == ["B"]
    assert adopt(settled, {"B"}) == []
