"""The house's own client on the paper broker: both speak the same wire, also where it goes wrong."""

from collections.abc import AsyncGenerator
from decimal import Decimal

import pytest

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker as Client
from libs.trading.broker.errors import BrokerRefused, BrokerUncertain
from services.paper.memory import PaperTransport
from tests.unit.paper_cases import START, Broker, made


@pytest.fixture
def paper() -> Broker:
    return Broker(made(fill_ms=50, slices=2))


@pytest.fixture
async def client(paper: Broker) -> AsyncGenerator[Client, None]:
    address = BrokerAddress(name="paper", base_url="http://127.0.0.1:8010", key_id="", secret="")
    async with Client(address, transport=PaperTransport(paper.app)) as made_client:
        yield made_client


async def enter(client: Client, number: int, *, symbol: str = "AAPL", price: int = 110) -> str:
    sent = await client.submit_limit(
        symbol=symbol, side="buy", qty=Decimal(2), limit_price=Decimal(price), client_order_id=f"lexi-{number}"
    )
    return sent.id


async def test_an_order_its_fills_and_its_position(paper: Broker, client: Client) -> None:
    order_id = await enter(client, 1)
    [waiting] = await client.open_orders()
    assert (waiting.id, waiting.open, waiting.limit_price) == (order_id, True, 110)
    paper.wait(100)
    known = await client.order_by_client_id("lexi-1")
    assert known is not None
    assert (known.status, known.filled_qty, known.filled_avg_price) == ("filled", 2, 100)
    assert await client.order(order_id) == known
    assert await client.order_by_client_id("lexi-2") is None
    assert [fill.qty for fill in await client.fills_after(None)] == [1, 1]
    assert await client.orders_after(START) != []
    position = await client.position("AAPL")
    assert position is not None
    assert (position.qty, position.qty_available, position.current_price) == (2, 2, 100)
    assert await client.position("MSFT") is None
    account = await client.account()
    assert (account.equity, account.last_equity, account.status) == (1_000_000, 1_000_000, "ACTIVE")
    assert (await client.clock()).is_open


async def test_flat_by_cancelling_and_closing_all(paper: Broker, client: Client) -> None:
    for number, symbol in enumerate(["AAPL", "BTC/USD"]):
        await enter(client, number, symbol=symbol, price=70_000)
    paper.wait(100)
    resting = await enter(client, 9, price=50)
    assert [(result.subject, result.ok) for result in await client.cancel_all()] == [(resting, True)]
    assert not await client.cancel(resting)
    closed = await client.close_all()
    assert [(result.subject, result.ok) for result in closed] == [("AAPL", True), ("BTCUSD", True)]
    held = await client.close_all()
    assert [(result.ok, result.status, result.code) for result in held] == [(False, 403, 40310000)] * 2
    paper.wait(100)
    assert (await client.positions(), await client.open_orders()) == ([], [])
    with pytest.raises(BrokerRefused) as found:
        await client.close_position("BTC/USD")
    assert found.value.status == 404


async def test_a_refusal_is_known_to_have_done_nothing(paper: Broker, client: Client) -> None:
    await enter(client, 1)
    with pytest.raises(BrokerRefused, match="client_order_id must be unique"):
        await enter(client, 1)
    await paper.strike(kind="reject", message="asset is halted")
    with pytest.raises(BrokerRefused, match="asset is halted"):
        await enter(client, 2)


@pytest.mark.parametrize("kind", ["reset", "silence", "error"])
async def test_an_order_without_an_answer_may_have_arrived(paper: Broker, client: Client, kind: str) -> None:
    await paper.strike(kind=kind, route="POST /v2/orders", when="after", times=1)
    with pytest.raises(BrokerUncertain):
        await enter(client, 1)
    known = await client.order_by_client_id("lexi-1")
    assert known is not None
    assert known.open


async def test_a_pair_is_entered_found_and_closed(paper: Broker, client: Client) -> None:
    await enter(client, 1, symbol="BTC/USD", price=70_000)
    paper.wait(100)
    known = await client.order_by_client_id("lexi-1")
    assert known is not None
    assert (known.symbol, known.status) == ("BTC/USD", "filled")
    held = await client.position("BTC/USD")
    assert held is not None
    assert (held.symbol, held.qty) == ("BTCUSD", 2)
    assert await client.positions() == [held]
    assert (await client.close_position("BTC/USD", Decimal("0.5"))).symbol == "BTC/USD"
    paper.wait(100)
    assert (await client.close_position(held.symbol)).side == "sell"
    paper.wait(100)
    assert await client.positions() == []
    assert await client.position("BTC/USD") is None


async def test_the_account_tells_its_number(client: Client) -> None:
    assert await client.identity() == f"paper:{(await client.account()).account_number}"


async def test_failed_items_of_a_list_are_read(paper: Broker, client: Client) -> None:
    await enter(client, 1)
    paper.wait(100)
    await enter(client, 2, price=50)
    await paper.strike(kind="fail_close")
    await paper.strike(kind="fail_cancel")
    [cancelled] = await client.cancel_all()
    [closed] = await client.close_all()
    assert (cancelled.ok, cancelled.status) == (False, 500)
    assert (closed.ok, closed.status, closed.message) == (False, 500, "internal server error occurred")


async def test_pages_lose_nothing(paper: Broker, client: Client) -> None:
    for number in range(503):
        paper.exchange.advance(paper.now)
        await enter(client, number, price=1)
    assert len(await client.open_orders()) == 503
    after_all = await client.orders_after(START)
    assert len({order.id for order in after_all}) == 503
    await paper.http.put("/paper/marks", json={"AAPL": "0.5"})
    paper.wait(1000)
    assert len(await client.fills_after(None)) == 1006
