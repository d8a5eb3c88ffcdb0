"""What reconciliation does where our record and the broker's differ."""

import json
from collections.abc import AsyncGenerator
from decimal import Decimal
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.reconcile_cases import Desk, FakeAlpaca, open_desk


@pytest.fixture
async def desk(engine: AsyncEngine) -> AsyncGenerator[Desk, None]:
    async with open_desk(engine, FakeAlpaca()) as made:
        await made.reconcile()
        yield made


def counted(kind: str) -> float:
    return REGISTRY.get_sample_value("lexi_reconcile_differences_total", {"kind": kind}) or 0.0


async def alerts(desk: Desk) -> list[str]:
    return [row["text"] for row in await desk.rows("select text from alerts where kind = 'reconciliation' order by id")]


async def test_an_order_nobody_here_sent_is_named_the_second_time_and_adopted(desk: Desk) -> None:
    before = counted("UNKNOWN_ORDER")
    stranger = desk.alpaca.order("AAPL", 10)
    desk.alpaca.fill(stranger, 4)
    written = await desk.reconcile()
    assert written.confirmed == ()
    assert await desk.rows("select * from orders") == await desk.rows("select * from fills") == []
    assert "seen once" in str(await desk.reconciler.reconciled_check())
    written = await desk.reconcile()
    assert [each.kind for each in written.confirmed] == ["UNKNOWN_ORDER"]
    assert await desk.differences() == [("UNKNOWN_ORDER", stranger)]
    (told,) = await alerts(desk)
    assert told.startswith("UNKNOWN_ORDER: the broker has an order nobody here sent: buy 10 AAPL")
    (order,) = await desk.rows("select * from orders")
    assert (order["origin"], order["broker_id"], order["filled_qty"]) == ("broker", stranger, 4)
    assert await desk.positions() == {"AAPL": (4, 4)}
    desk.alpaca.fill(stranger)
    await desk.reconcile(3)
    assert await desk.positions() == {"AAPL": (10, 10)}
    assert len(await desk.differences()) == 1
    assert await desk.reconciler.reconciled_check() is None
    assert counted("UNKNOWN_ORDER") == before + 1


async def test_a_strangers_order_that_was_over_at_once_is_found_by_its_fills(desk: Desk) -> None:
    stranger = desk.alpaca.order("AAPL", 10, age_s=3600)
    desk.alpaca.fill(stranger)
    await desk.reconcile(2)
    assert await desk.differences() == [("UNKNOWN_ORDER", stranger)]
    assert await desk.positions() == {"AAPL": (10, 10)}


async def test_fills_of_a_strangers_order_are_not_lost_behind_newer_ones(desk: Desk) -> None:
    known = await desk.send(qty=10)
    await desk.reconcile()
    stranger = desk.alpaca.order("IBM", 5, age_s=7000)
    await desk.change("update broker_state set reconciled_at = now() - interval '2 hours'")
    desk.alpaca.fill(stranger, age_s=6000)
    desk.alpaca.fill(desk.at_broker(known), 1)
    await desk.reconcile(3)
    assert await desk.positions() == {"AAPL": (1, 1), "IBM": (5, 5)}
    assert await desk.differences() == [("UNKNOWN_ORDER", stranger)]


async def test_a_closing_order_of_a_panic_exit_is_no_strangers(desk: Desk) -> None:
    closing = desk.alpaca.order("AAPL", -5)
    stranger = desk.alpaca.order("IBM", 1)
    await copy_journal(desk, "close_all_result", {"items": [{"symbol": "AAPL", "order": {"id": closing}}]})
    await copy_journal(desk, "cancel_all_result", {"items": [{"id": stranger}]})
    await desk.reconcile()
    assert await desk.rows("select broker_id, origin from orders") == [{"broker_id": closing, "origin": "panic"}]
    await desk.reconcile()
    assert await desk.differences() == [("UNKNOWN_ORDER", stranger)]


async def test_a_panic_exits_order_is_claimed_when_its_journal_comes_late(desk: Desk) -> None:
    closing = desk.alpaca.order("AAPL", -5)
    await desk.reconcile(2)
    await copy_journal(desk, "close_all_result", {"closed": [closing]})
    await desk.reconcile()
    assert await desk.rows("select origin, status from orders") == [{"origin": "panic", "status": "new"}]


async def copy_journal(desk: Desk, action: str, result: object) -> None:
    await desk.change(
        "insert into panic_journal values (:id, 1, now(), :action, cast(:result as jsonb), 'h')",
        id=uuid4(),
        action=action,
        result=json.dumps(result),
    )


async def test_an_open_order_that_the_broker_denies_ends_the_second_time(desk: Desk) -> None:
    order_id = await desk.send()
    await desk.reconcile()
    desk.alpaca.orders.clear()
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "new"
    await desk.reconcile()
    assert await desk.differences() == [("MISSING_ORDER", str(order_id))]
    assert (await desk.order(order_id))["status"] == "canceled"
    await desk.reconcile(2)
    assert len(await alerts(desk)) == 1


async def test_a_position_that_no_fill_explains_is_adopted_the_second_time(desk: Desk) -> None:
    desk.alpaca.positions["AAPL"] = Decimal("10.5")
    await desk.reconcile()
    (row,) = await desk.rows("select ticker, qty, expected_qty from positions")
    assert row == {"ticker": "AAPL", "qty": Decimal("10.5"), "expected_qty": 0}
    await desk.reconcile()
    assert await desk.differences() == [("POSITION_DIFFERS", "AAPL")]
    assert await alerts(desk) == ["POSITION_DIFFERS: the broker holds 10.5 AAPL; the fills we know make 0"]
    desk.alpaca.positions.clear()
    await desk.reconcile(3)
    assert await desk.differences() == [("POSITION_DIFFERS", "AAPL")] * 2
    assert await desk.positions() == {}


async def test_a_difference_that_is_another_one_each_time_is_not_named(desk: Desk) -> None:
    for qty in (10, 11, 0, 12):
        desk.alpaca.positions["AAPL"] = Decimal(qty)
        await desk.reconcile()
    assert await desk.differences() == []


async def test_many_differences_are_one_alert(desk: Desk) -> None:
    for number in range(8):
        desk.alpaca.positions[f"T{number}"] = Decimal(1)
    await desk.reconcile(2)
    assert len(await desk.differences()) == 8
    (told,) = await alerts(desk)
    assert told.count("POSITION_DIFFERS") == 5
    assert told.endswith("; and 3 more")


async def test_another_account_is_news_at_once_and_taken_as_it_is(desk: Desk, engine: AsyncEngine) -> None:
    elsewhere = FakeAlpaca("PA2")
    elsewhere.positions["IBM"] = Decimal(7)
    async with open_desk(engine, elsewhere) as moved:
        await moved.reconcile()
        assert "another broker or account" not in str(await moved.reconciler.reconciled_check())
        assert await moved.differences() == [("ACCOUNT_CHANGED", "paper:PA2")]
        await moved.reconcile(2)
        assert await moved.positions() == {"IBM": (7, 7)}
        assert len(await alerts(moved)) == 1


async def test_orders_of_another_account_are_not_denied(desk: Desk, engine: AsyncEngine) -> None:
    """A process that was pointed elsewhere knows nothing of our orders; that says nothing about them."""
    await desk.change(
        "insert into orders (id, origin, ticker, side, qty, status, broker_id, created_at, updated_at) values"
        " (gen_random_uuid(), 'entry', 'AAPL', 'buy', 1, 'new', 'b1', now() - interval '9 minutes', now()),"
        " (gen_random_uuid(), 'entry', 'AAPL', 'buy', 1, 'submitting', null, now() - interval '9 minutes',"
        "  now() - interval '9 minutes')"
    )
    async with open_desk(engine, FakeAlpaca("PA2")) as elsewhere:
        await elsewhere.reconcile()
        assert [row["status"] for row in await desk.rows("select status from orders order by status")] == [
            "new",
            "submitting",
        ]
        assert "another broker or account" not in str(await elsewhere.reconciler.reconciled_check())
        await desk.reconcile()
        assert "another broker or account" in str(await elsewhere.reconciler.reconciled_check())
