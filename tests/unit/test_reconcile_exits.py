"""Pairing exits with orders by their form and time, as a pure function."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.jobs.reconcile.exits import Close, Lost, is_of, pair

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MINUTES = st.integers(-300, 300)


def lost(
    number: int, *, status: str = "submitting", qty: int = 5, copied: float = 0, sent: float | None = None
) -> Lost:
    """An exit; its times are minutes after noon."""
    row = NOON + timedelta(minutes=copied)
    sent_at = None if sent is None else NOON + timedelta(minutes=sent)
    return Lost(UUID(int=number), "AAPL", "sell", Decimal(qty), status, row, row, sent_at)


def close(name: str, *, qty: int = 5, at: float = 0, seen_before: bool = True) -> Close:
    return Close(name, "AAPL", "sell", Decimal(qty), NOON + timedelta(minutes=at), seen_before)


def test_equal_exits_get_their_orders_in_turn() -> None:
    exits = [lost(1, copied=2), lost(2, copied=1)]
    orders = [close("later", at=1.5), close("sooner", at=0.5)]
    assert pair(exits, orders) == {"sooner": UUID(int=2), "later": UUID(int=1)}


def test_an_exit_that_never_came_does_not_stand_in_the_way_of_a_later_one() -> None:
    exits = [lost(1, copied=-240, sent=-240), lost(2, sent=0)]
    assert pair(exits, [close("found")]) == {"found": UUID(int=2)}


def test_an_exit_without_an_answer_comes_before_an_older_one_with_a_bad_one() -> None:
    exits = [lost(1, status="rejected", copied=-10), lost(2), lost(3, status="not_sent", copied=-20)]
    assert pair(exits, [close("found")]) == {"found": UUID(int=2)}


def test_a_refused_exit_waits_for_an_order_to_be_seen_again_and_not_for_ever() -> None:
    refused = lost(1, status="rejected")
    assert pair([refused], [close("fresh", at=10, seen_before=False)]) == {}
    assert pair([refused], [close("again", at=10)]) == {"again": UUID(int=1)}
    assert pair([refused], [close("hours later", at=120)]) == {}


@given(
    st.lists(
        st.tuples(MINUTES, st.sampled_from(["submitting", "not_sent", "rejected"]), st.integers(1, 3)), max_size=6
    ),
    st.lists(st.tuples(MINUTES, st.booleans(), st.integers(1, 3)), max_size=6),
)
def test_each_exit_gets_one_order_at_most_and_only_one_of_its_form_and_time(
    rows: list[tuple[int, str, int]], orders: list[tuple[int, bool, int]]
) -> None:
    exits = {
        UUID(int=number): lost(number, status=status, qty=qty, copied=at, sent=at)
        for number, (at, status, qty) in enumerate(rows)
    }
    closes = {
        str(number): close(str(number), qty=qty, at=at, seen_before=before)
        for number, (at, before, qty) in enumerate(orders)
    }
    found = pair(exits.values(), closes.values())
    assert all(count == 1 for count in Counter(found.values()).values())
    assert all(is_of(exits[order_id], closes[broker_id]) for broker_id, order_id in found.items())
    left_exits = [each for each in exits.values() if each.id not in found.values()]
    left_closes = [each for each in closes.values() if each.broker_id not in found]
    assert not any(is_of(each, other) for each in left_exits for other in left_closes)
