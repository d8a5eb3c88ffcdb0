"""Orders of the real api process when the broker resets connections, falls silent, or is not there."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults.gateway_process import eventually
from tests.faults.orders_process import Trading, trading
from tools.local_stack.postgres import EmbeddedPostgres


@pytest.fixture
async def house(postgres: EmbeddedPostgres) -> AsyncIterator[Trading]:
    """A house of this test's own."""
    async with trading(postgres) as made:
        yield made


async def test_a_connection_cut_before_the_broker_read_is_never_tried_again(house: Trading) -> None:
    house.paper.fault(kind="reset", route="POST /v2/orders", when="before")
    first = await house.order(client_order_id="one")
    assert (first.status_code, first.json()["order"]["status"]) == (200, "submitting")
    again = await house.order(client_order_id="one")
    assert again.json()["verdict_id"] == first.json()["verdict_id"]
    assert house.sent() == 0


async def test_a_connection_cut_after_the_broker_did_it_is_found_and_told(house: Trading) -> None:
    house.paper.fault(kind="reset", route="POST /v2/orders", when="after")
    told = await house.order(client_order_id="one")
    assert (told.status_code, house.sent()) == (200, 1)
    assert told.json()["order"]["broker_id"] == house.paper.orders()[0].id
    assert (await house.order(client_order_id="one")).json()["order"]["broker_id"] == house.paper.orders()[0].id
    assert house.sent() == 1


async def test_a_broker_that_falls_silent_holds_up_nobody_else(house: Trading) -> None:
    await house.order()
    await house.until_held()
    await house.fresh("MSFT")
    house.paper.fault(kind="latency", route="POST /v2/orders", ms=600_000, times=1)
    silent = asyncio.create_task(house.order(ticker="MSFT", client_order_id="silent"))
    await asyncio.sleep(0.5)
    assert not silent.done()
    asked = await house.order(path="gate", client_order_id="asked", within_s=3)
    assert asked.status_code == 200
    left = await house.exit("10")
    assert (left.status_code, left.json()["verdict"]) == (200, "allow")
    assert not silent.done()
    told = await silent
    assert (told.status_code, told.json()["order"]["status"], house.sent()) == (200, "submitting", 1)


async def test_an_exit_whose_answer_was_lost_closes_once(house: Trading) -> None:
    await house.order()
    await house.until_held()
    house.paper.fault(kind="reset", route="DELETE /v2/positions/{symbol}", when="after")
    told = await house.exit("4", client_order_id="leave")
    again = await house.exit("4", client_order_id="leave")
    assert (told.status_code, told.json()["verdict"], again.status_code) == (200, "allow", 200)
    closes = [order for order in house.paper.orders() if order.closing]
    assert [order.qty for order in closes] == [4]
    assert told.json()["order"]["broker_id"] == again.json()["order"]["broker_id"] == closes[0].id


async def test_a_position_that_cannot_be_read_sends_nothing_and_may_be_tried_again(house: Trading) -> None:
    await house.order()
    await house.until_held()
    house.paper.fault(kind="error", route="GET /v2/positions/{symbol}", status=500, times=1)
    assert (await house.exit("10", client_order_id="leave")).status_code == 502
    assert house.paper.held("AAPL") == 10
    assert (await house.exit("10", client_order_id="leave")).status_code == 200


async def test_an_api_killed_between_verdict_and_broker_sends_nothing_afterwards(house: Trading) -> None:
    house.paper.fault(kind="latency", route="POST /v2/orders", ms=600_000)
    doomed = asyncio.create_task(house.order(client_order_id="one"))

    async def on_its_way() -> bool:
        return bool(await house.api.query("select 1 from orders where status = 'submitting'"))

    await eventually(on_its_way, what="the order is on its way")
    assert house.api.process is not None
    house.api.process.kill()
    await house.api.process.wait()
    await asyncio.gather(doomed, return_exceptions=True)
    house.paper.exchange.faults.clear()
    await house.api.start()
    again = await house.order(client_order_id="one")
    assert (again.status_code, again.json()["order"]["status"]) == (200, "submitting")
    another = await house.order(client_order_id="two")
    assert (another.status_code, another.json()["reasons"]) == (409, ["DECISION_USED"])
    assert house.sent() == 0
