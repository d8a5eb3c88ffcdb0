"""Reconciliation with a broker at the wire and a real database: orders, fills and positions as they come and go."""

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.reconcile_cases import ACCOUNT, Desk, FakeAlpaca, open_desk


@pytest.fixture
async def desk(engine: AsyncEngine) -> AsyncGenerator[Desk, None]:
    async with open_desk(engine, FakeAlpaca()) as made:
        yield made


async def test_an_account_read_for_the_first_time_is_taken_as_it_is(desk: Desk) -> None:
    held = desk.alpaca.order("IBM", 5, age_s=60)
    desk.alpaca.fill(held, age_s=30)
    waiting = desk.alpaca.order("AAPL", 7, age_s=900_000)
    desk.alpaca.positions["OLD"] = Decimal(-3)
    written = await desk.reconcile()
    assert written.first
    assert await desk.positions() == {"IBM": (5, 5), "OLD": (-3, -3)}
    assert await desk.rows("select broker_id, origin, status from orders") == [
        {"broker_id": waiting, "origin": "broker", "status": "new"}
    ]
    (state,) = await desk.rows("select * from broker_state")
    assert (state["account"], state["market_open"], state["differences"]) == (ACCOUNT, True, [])
    assert (state["equity"], state["last_equity"]) == (Decimal("100500.5"), Decimal(100_000))
    desk.alpaca.fill(waiting, 3)
    await desk.reconcile(3)
    assert await desk.differences() == []
    assert await desk.positions() == {"AAPL": (3, 3), "IBM": (5, 5), "OLD": (-3, -3)}


async def test_a_first_reading_waits_for_a_moment_without_fills(desk: Desk) -> None:
    order = desk.alpaca.order(qty=10)

    def after_the_fills_were_read() -> None:
        desk.alpaca.before["/positions"] = lambda: desk.alpaca.fill(order, 1)

    desk.alpaca.before["/clock"] = after_the_fills_were_read
    assert await desk.reconciler.step() is None
    assert await desk.rows("select * from broker_state") == []
    assert "first time" in str(await desk.reconciler.broker_check())
    await desk.reconcile(3)
    assert await desk.differences() == []
    assert await desk.positions() == {"AAPL": (1, 1)}


async def test_an_order_of_ours_is_followed_to_its_end(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=10)
    await desk.reconcile()
    order = await desk.order(order_id)
    assert (order["status"], order["broker_id"]) == ("new", desk.at_broker(order_id))
    first = desk.alpaca.fill(desk.at_broker(order_id), 4, "100.25")
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "partially_filled"
    assert await desk.positions() == {"AAPL": (4, 4)}
    last = desk.alpaca.fill(desk.at_broker(order_id), 6, "100.5")
    await desk.reconcile(3)
    order = await desk.order(order_id)
    assert (order["status"], order["filled_qty"], order["filled_avg_price"]) == ("filled", 10, Decimal("100.5"))
    assert [row["id"] for row in await desk.rows("select id from fills order by at")] == [first, last]
    assert await desk.positions() == {"AAPL": (10, 10)}
    assert await desk.differences() == []


async def test_a_sale_and_a_short_position_have_their_sign(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=-10)
    desk.alpaca.fill(desk.at_broker(order_id), 10)
    await desk.reconcile(2)
    assert await desk.positions() == {"AAPL": (-10, -10)}
    back = await desk.send(qty=10)
    desk.alpaca.fill(desk.at_broker(back))
    await desk.reconcile(2)
    assert await desk.positions() == {}
    assert await desk.differences() == []


async def test_an_order_that_never_came_is_not_sent_after_a_minute(desk: Desk) -> None:
    await desk.reconcile()
    young = await desk.send(age_s=50, arrives=False)
    old = await desk.send(age_s=70, arrives=False)
    written = await desk.reconcile()
    assert written.not_sent == 1
    assert (await desk.order(young))["status"] == "submitting"
    assert (await desk.order(old))["status"] == "not_sent"
    assert await desk.differences() == []


async def test_an_old_order_on_its_way_is_found_by_its_id(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(age_s=7000)
    desk.alpaca.orders[desk.at_broker(order_id)]["status"] = "rejected"
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "rejected"


async def test_a_row_that_changed_while_the_broker_was_read_is_left_alone(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send()
    await desk.reconcile()
    known = desk.at_broker(order_id)
    written = await desk.reconcile()
    assert written.orders == 0
    ground = await desk.reconciler._books.ground()  # as a round begins
    desk.alpaca.orders[known]["status"] = "pending_cancel"
    reading = await desk.reconciler._read(ground)
    assert reading is not None
    statement = "update orders set status = 'canceled', updated_at = clock_timestamp() where id = :id"
    await desk.change(statement, id=order_id)
    await desk.reconciler._write(ground, reading)
    assert (await desk.order(order_id))["status"] == "canceled"


async def test_fills_that_come_while_the_broker_is_read_are_no_difference(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=10)
    await desk.reconcile()

    def two_fills() -> None:
        for _ in range(2):
            desk.alpaca.fill(desk.at_broker(order_id), 1)

    for _ in range(3):
        desk.alpaca.before["/account"] = two_fills
        written = await desk.reconcile()
        assert written.suspected == ()
    await desk.reconcile()
    assert await desk.positions() == {"AAPL": (6, 6)}
    assert await desk.differences() == []


async def test_a_fill_that_is_listed_late_is_no_difference(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=10)
    await desk.reconcile()
    desk.alpaca.fill(desk.at_broker(order_id), 2)
    late = desk.alpaca.fills.pop()
    written = await desk.reconcile()
    assert len(written.suspected) == 1
    desk.alpaca.fills.append(late)
    written = await desk.reconcile()
    assert written.suspected == ()
    assert await desk.differences() == []


async def test_an_order_sent_while_the_broker_was_read_has_its_fills_counted_once(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=3, arrives=False)

    def arrives() -> None:
        known = desk.alpaca.order(qty=3, client=f"lexi-{order_id.hex}")
        desk.alpaca.fill(known, 3)

    desk.alpaca.before["/account"] = arrives
    await desk.reconcile(3)
    assert await desk.positions() == {"AAPL": (3, 3)}
    assert await desk.differences() == []


async def test_many_orders_and_positions_take_few_statements_and_calls(desk: Desk, engine: AsyncEngine) -> None:
    await desk.reconcile()
    sent = [await desk.send(f"T{number % 50}", 2) for number in range(200)]
    for order_id in sent[:100]:
        desk.alpaca.fill(desk.at_broker(order_id), 1)
    statements: list[str] = []

    def count(*given: Any) -> None:
        statements.append(given[2])

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    desk.alpaca.calls.clear()
    written = await desk.reconcile()
    event.remove(engine.sync_engine, "before_cursor_execute", count)
    assert (written.orders, written.fills, written.positions) == (200, 100, 50)
    assert len(statements) <= 20
    assert len(desk.alpaca.calls) <= 8


async def test_many_orders_that_ended_at_once_are_asked_for_in_a_list(desk: Desk) -> None:
    await desk.reconcile()
    sent = [await desk.send(f"T{number}", 2, age_s=600) for number in range(200)]
    await desk.reconcile()
    for order in desk.alpaca.orders.values():
        order["status"] = "canceled"
    desk.alpaca.calls.clear()
    written = await desk.reconcile()
    assert written.orders == 200
    assert len(desk.alpaca.calls) <= 8
    assert (await desk.order(sent[0]))["status"] == "canceled"


async def test_what_happened_in_a_long_absence_is_read_in_full(desk: Desk) -> None:
    await desk.reconcile()
    order_id = await desk.send(qty=300, age_s=0)
    await desk.reconcile()
    await desk.change("update broker_state set reconciled_at = now() - interval '3 days'")
    for number in range(250):
        desk.alpaca.fill(desk.at_broker(order_id), 1, age_s=80_000 - number)
    await desk.reconcile(2)
    assert await desk.positions() == {"AAPL": (250, 250)}
    assert len(await desk.rows("select id from fills")) == 250
    assert await desk.differences() == []
