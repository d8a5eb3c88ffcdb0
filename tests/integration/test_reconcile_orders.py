"""Orders with something odd about them: given up and there after all, by amount of money, or written in two ways."""

from collections.abc import AsyncGenerator
from decimal import Decimal

import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.reconcile.reading import ASKED_AT_ONCE
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


@pytest.mark.parametrize("status", ["not_sent", "rejected"])
async def test_an_order_that_was_given_up_and_came_after_all_is_named_and_followed(desk: Desk, status: str) -> None:
    before = counted("LATE_ORDER")
    order_id = await desk.send(age_s=70, arrives=False)
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "not_sent"
    await desk.change("update orders set status = :status", status=status)
    desk.alpaca.order(client=f"lexi-{order_id.hex}")
    written = await desk.reconcile()
    assert [each.kind for each in written.confirmed] == ["LATE_ORDER"]
    order = await desk.order(order_id)
    assert (order["status"], order["broker_id"]) == ("new", desk.at_broker(order_id))
    assert (order["origin"], order["reason"]) == ("entry", "given up, and at the broker after all")
    (told,) = await alerts(desk)
    assert f"given up is at the broker: buy 10 AAPL ({order_id}), new" in told
    desk.alpaca.fill(desk.at_broker(order_id))
    await desk.reconcile(3)
    assert (await desk.order(order_id))["status"] == "filled"
    assert await desk.positions() == {"AAPL": (10, 10)}
    assert await desk.rows("select count(*) as n from orders") == [{"n": 1}]
    assert await desk.differences() == [("LATE_ORDER", str(order_id))]
    assert counted("LATE_ORDER") == before + 1


async def test_a_late_order_that_was_over_at_once_is_found_by_its_fills(desk: Desk) -> None:
    order_id = await desk.send(age_s=70, arrives=False)
    await desk.reconcile()
    late = desk.alpaca.order(client=f"lexi-{order_id.hex}", age_s=600)
    desk.alpaca.fill(late)
    await desk.reconcile(2)
    assert (await desk.order(order_id))["filled_qty"] == 10
    assert await desk.positions() == {"AAPL": (10, 10)}
    assert await desk.differences() == [("LATE_ORDER", str(order_id))]


async def test_an_order_that_the_broker_denied_and_has_after_all_is_named(desk: Desk) -> None:
    order_id = await desk.send()
    await desk.reconcile()
    hidden = dict(desk.alpaca.orders)
    desk.alpaca.orders.clear()
    await desk.reconcile(2)
    assert (await desk.order(order_id))["status"] == "canceled"
    desk.alpaca.orders.update(hidden)
    await desk.reconcile(3)
    assert (await desk.order(order_id))["status"] == "new"
    subject = str(order_id)
    assert await desk.differences() == [("MISSING_ORDER", subject), ("LATE_ORDER", subject)]


async def test_an_order_that_the_broker_rejected_as_we_were_told_is_no_difference(desk: Desk) -> None:
    order_id = await desk.send()
    await desk.change("update orders set status = 'rejected'")
    desk.alpaca.orders[desk.at_broker(order_id)]["status"] = "rejected"
    await desk.reconcile(2)
    assert (await desk.order(order_id))["broker_id"] == desk.at_broker(order_id)
    assert await desk.differences() == []


async def test_many_orders_that_never_came_are_asked_for_a_few_at_a_time(desk: Desk) -> None:
    for _ in range(ASKED_AT_ONCE + 5):
        await desk.send(age_s=70, arrives=False)
    desk.alpaca.calls.clear()
    assert (await desk.reconcile()).not_sent == ASKED_AT_ONCE
    assert desk.alpaca.calls.count("GET /orders:by_client_order_id") == ASKED_AT_ONCE
    assert (await desk.reconcile()).not_sent == 5


async def test_an_order_by_amount_of_money_never_fills_more_than_its_quantity(desk: Desk) -> None:
    order = desk.alpaca.order("AAPL", 10, type_="market")
    desk.alpaca.orders[order]["qty"] = None
    for filled in (3, 7):
        desk.alpaca.orders[order]["filled_qty"] = str(filled)
        desk.alpaca.orders[order]["status"] = "partially_filled"
        await desk.reconcile(2)
        assert await desk.rows("select qty, filled_qty, limit_price from orders") == [
            {"qty": filled, "filled_qty": filled, "limit_price": None}
        ]


async def test_an_order_at_the_market_has_no_limit_whatever_the_broker_says(desk: Desk) -> None:
    at_market = desk.alpaca.order("AAPL", 10, type_="market")
    limited = desk.alpaca.order("IBM", 10)
    await desk.reconcile(2)
    assert await desk.rows("select broker_id, limit_price from orders order by ticker") == [
        {"broker_id": at_market, "limit_price": None},
        {"broker_id": limited, "limit_price": Decimal("100.5")},
    ]
    await desk.change("update orders set limit_price = 1")
    desk.alpaca.fill(at_market, 1)
    desk.alpaca.fill(limited, 1)
    await desk.reconcile()
    prices = await desk.rows("select limit_price from orders order by ticker")
    assert [row["limit_price"] for row in prices] == [None, 1]


async def test_pairs_are_spelled_in_positions_as_in_their_orders(desk: Desk) -> None:
    order_id = await desk.send("BTC/USD", 2)
    desk.alpaca.fill(desk.at_broker(order_id))
    await desk.reconcile(2)
    assert await desk.positions() == {"BTC/USD": (2, 2)}
    assert await desk.differences() == []


async def test_a_pair_keeps_its_name_long_after_its_last_order(desk: Desk) -> None:
    order_id = await desk.send("BTC/USD", 2)
    desk.alpaca.fill(desk.at_broker(order_id))
    await desk.reconcile()
    await desk.change("delete from orders")
    for order in desk.alpaca.orders.values():
        order["submitted_at"] = "2020-01-01T00:00:00Z"
    desk.alpaca.fills.clear()
    await desk.reconcile(3)
    assert await desk.positions() == {"BTC/USD": (2, 2)}
    assert await desk.differences() == []
    desk.alpaca.positions["BTCUSD"] = Decimal(0)
    await desk.reconcile(2)
    assert await desk.differences() == [("POSITION_DIFFERS", "BTC/USD")]


@pytest.mark.parametrize("known_by", ["an old order", "a forecast"])
async def test_a_position_met_under_the_brokers_name_moves_to_ours(desk: Desk, known_by: str) -> None:
    desk.alpaca.positions["BTCUSD"] = Decimal(2)
    await desk.reconcile(2)
    assert await desk.positions() == {"BTCUSD": (2, 2)}
    if known_by == "an old order":
        order_id = await desk.send("BTC/USD", 1, age_s=90_000, arrives=False)
        await desk.change("update orders set status = 'canceled' where id = :id", id=order_id)
    else:
        await desk.change(
            "insert into forecast_heads (feed, ticker, horizon, model, as_of, id) "
            "values ('f', 'BTC/USD', '1d', 'm', now(), gen_random_uuid())"
        )
    await desk.reconcile(3)
    assert await desk.positions() == {"BTC/USD": (2, 2)}
    assert await desk.differences() == [("POSITION_DIFFERS", "BTCUSD")]  # from before, when nobody explained it


async def test_orders_and_fills_under_the_brokers_name_count_for_our_pair(desk: Desk) -> None:
    order_id = await desk.send("BTC/USD", 2)
    desk.alpaca.fill(desk.at_broker(order_id))
    await desk.reconcile()
    selling = desk.alpaca.order("BTCUSD", -1, type_="market")
    await desk.reconcile(2)
    desk.alpaca.fill(selling)
    await desk.reconcile(2)
    rows = await desk.rows("select ticker from orders where broker_id = :id", id=selling)
    assert rows == [{"ticker": "BTC/USD"}]
    assert await desk.positions() == {"BTC/USD": (1, 1)}
    assert await desk.differences() == [("UNKNOWN_ORDER", selling)]


async def test_an_order_kept_under_the_brokers_name_fills_our_pair_once_that_is_known(desk: Desk) -> None:
    desk.alpaca.order("BTCUSD", 3)
    await desk.reconcile(2)
    (order,) = await desk.rows("select ticker, broker_id from orders")
    assert order["ticker"] == "BTCUSD"
    await desk.change(
        "insert into forecast_heads (feed, ticker, horizon, model, as_of, id) "
        "values ('f', 'BTC/USD', '1d', 'm', now(), gen_random_uuid())"
    )
    desk.alpaca.fill(order["broker_id"])
    written = await desk.reconcile()
    assert written.suspected == ()
    assert await desk.positions() == {"BTC/USD": (3, 3)}
