"""The broker's client against a wire that answers as Alpaca does, and as it should not."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.trading.broker.address import BrokerAddress, broker_address
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import (
    BrokerConfigError,
    BrokerError,
    BrokerRefused,
    BrokerUncertain,
    BrokerUnreachable,
)
from libs.trading.broker.settings import BrokerSettings
from libs.trading.broker.types import INSUFFICIENT_QTY, BrokerOrder

AT = datetime(2021, 3, 16, 18, 38, 1, 942282, tzinfo=UTC)
ADDRESS = BrokerAddress("paper", "http://broker", "key", "secret")

ORDER: dict[str, Any] = {
    "id": "61e69015-8549-4bfd-b9c3-01e75843f47d",
    "client_order_id": "lexi-1",
    "created_at": "2021-03-16T18:38:01.942282123Z",
    "submitted_at": "2021-03-16T18:38:01.942282123Z",
    "symbol": "AAPL",
    "qty": "15.5",
    "filled_qty": "5",
    "filled_avg_price": "100.25",
    "type": "limit",
    "side": "buy",
    "limit_price": "107.00",
    "status": "partially_filled",
}
PARSED = BrokerOrder(
    id="61e69015-8549-4bfd-b9c3-01e75843f47d",
    client_order_id="lexi-1",
    symbol="AAPL",
    side="buy",
    qty=Decimal("15.5"),
    filled_qty=Decimal(5),
    filled_avg_price=Decimal("100.25"),
    limit_price=Decimal("107.00"),
    type="limit",
    status="partially_filled",
    submitted_at=AT,
)
POSITION = {
    "symbol": "AAPL",
    "qty": "-5",
    "qty_available": "-4",
    "side": "short",
    "avg_entry_price": "100.0",
    "current_price": "120.5",
}
FILL = {
    "activity_type": "FILL",
    "id": "20190524113406977::8efc7b9a-8b2b-4000-9955-d36e7db0df74",
    "transaction_time": "2021-03-16T18:38:01.942282Z",
    "type": "partial_fill",
    "price": "1.63",
    "qty": "30",
    "side": "sell_short",
    "symbol": "LPCN",
    "order_id": "o-1",
}
Handler = Callable[[httpx.Request], httpx.Response]


def broker(handler: Handler | httpx.Response, **options: Any) -> Broker:
    def answer(request: httpx.Request) -> httpx.Response:
        return handler if isinstance(handler, httpx.Response) else handler(request)

    return Broker(ADDRESS, transport=httpx.MockTransport(answer), **options)


def saying(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


class Recorder:
    """Answers and remembers what was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers.pop(0)


async def test_an_order_is_sent_as_a_limit_for_the_day() -> None:
    wire = Recorder(saying(ORDER))
    order = await broker(wire).submit_limit(
        symbol="AAPL", side="buy", qty=Decimal("1E+1"), limit_price=Decimal("107.10"), client_order_id="lexi-1"
    )
    assert order == PARSED
    assert order.open
    assert order.remaining == Decimal("10.5")
    request = wire.asked[0]
    assert (request.method, str(request.url)) == ("POST", "http://broker/v2/orders")
    assert (request.headers["APCA-API-KEY-ID"], request.headers["APCA-API-SECRET-KEY"]) == ("key", "secret")
    assert json.loads(request.content) == {
        "symbol": "AAPL",
        "side": "buy",
        "qty": "10",
        "type": "limit",
        "limit_price": "107.10",
        "time_in_force": "day",
        "client_order_id": "lexi-1",
    }


@pytest.mark.parametrize("client_order_id", ["", "x" * 49])
async def test_an_id_that_the_broker_would_refuse_is_not_sent(client_order_id: str) -> None:
    wire = Recorder()
    with pytest.raises(ValueError, match="48"):
        await broker(wire).submit_limit(
            symbol="A", side="buy", qty=Decimal(1), limit_price=Decimal(1), client_order_id=client_order_id
        )
    assert wire.asked == []


@pytest.mark.parametrize("status", ["filled", "canceled", "expired", "rejected", "replaced", "done_for_day"])
async def test_final_statuses(status: str) -> None:
    assert not (await broker(saying({**ORDER, "status": status})).order("x")).open


async def test_an_order_by_money_has_no_quantity() -> None:
    order = await broker(saying({**ORDER, "qty": None, "limit_price": None, "filled_avg_price": None})).order("x")
    assert (order.qty, order.limit_price, order.filled_avg_price) == (0, None, None)


async def test_an_order_by_our_id() -> None:
    wire = Recorder(saying(ORDER), saying({"code": 40410000, "message": "order not found"}, 404))
    assert await broker(wire).order_by_client_id("lexi-1") == PARSED
    assert str(wire.asked[0].url) == "http://broker/v2/orders:by_client_order_id?client_order_id=lexi-1"
    assert await broker(wire).order_by_client_id("lexi-2") is None


async def test_other_refusals_of_a_look_up_are_not_a_missing_order() -> None:
    with pytest.raises(BrokerRefused):
        await broker(saying({"message": "forbidden"}, 403)).order_by_client_id("lexi-1")
    with pytest.raises(BrokerRefused):
        await broker(saying({"message": "forbidden"}, 403)).position("AAPL")


def page(first: int, count: int, *, same_moment: bool = False) -> list[dict[str, Any]]:
    def order(number: int) -> dict[str, Any]:
        at = AT if same_moment else AT + timedelta(milliseconds=number // 2)
        return {**ORDER, "id": f"o-{number}", "submitted_at": at.isoformat()}

    return [order(number) for number in range(first, first + count)]


async def test_open_orders_are_read_page_by_page_and_none_is_lost_within_a_moment() -> None:
    everything = page(0, 1101)

    def answer(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        assert (query["status"], query["limit"], query["direction"]) == ("open", "500", "asc")
        after = datetime.fromisoformat(query["after"]) if "after" in query else datetime.min.replace(tzinfo=UTC)
        newer = [order for order in everything if datetime.fromisoformat(order["submitted_at"]) > after]
        return saying(newer[:500])

    assert [order.id for order in await broker(answer).open_orders()] == [order["id"] for order in everything]


async def test_more_orders_of_one_moment_than_a_page_are_not_passed_over() -> None:
    with pytest.raises(BrokerUncertain, match="more orders of one moment"):
        await broker(saying(page(0, 500, same_moment=True))).open_orders()


async def test_orders_after_a_moment() -> None:
    wire = Recorder(saying([ORDER]))
    assert await broker(wire).orders_after(AT) == [PARSED]
    query = wire.asked[0].url.params
    assert (query["status"], query["after"]) == ("all", "2021-03-16T18:38:01.942282Z")


async def test_cancelling_one() -> None:
    wire = Recorder(httpx.Response(204), saying({"code": 42210000, "message": "no"}, 422), saying({}, 404))
    client = broker(wire)
    assert await client.cancel("a/b") is True
    assert wire.asked[0].url.raw_path == b"/v2/orders/a%2Fb"
    assert await client.cancel("o-1") is False
    with pytest.raises(BrokerRefused) as refused:
        await client.cancel("o-1")
    assert refused.value.status == 404


async def test_each_item_of_cancelling_all_is_read() -> None:
    said = [{"id": "a", "status": 200}, {"id": "b", "status": 500}, {"id": "c"}, "odd", {"status": 200}]
    items = await broker(saying(said, 207)).cancel_all()
    assert [(item.subject, item.ok) for item in items] == [
        ("a", True),
        ("b", False),
        ("c", False),
        ("", False),
        ("", True),
    ]


async def test_each_item_of_closing_all_is_read() -> None:
    no_qty = {"code": INSUFFICIENT_QTY, "message": "insufficient qty available for order", "symbol": "B", "id": "x"}
    said = [
        {"symbol": "A", "status": 200, "body": {**ORDER, "side": "sell"}},
        {"symbol": "B", "status": 403, "body": no_qty},
        {"symbol": "C", "status": 200, "body": no_qty},
        {"symbol": "D", "status": 200, "body": {**ORDER, "status": "rejected"}},
        {"symbol": "E", "status": 200, "body": {**ORDER, "qty": "many"}},
        {"symbol": "F", "status": "200", "body": None},
        {"symbol": "G", "status": 500, "body": "oops"},
    ]
    wire = Recorder(saying(said, 207))
    items = await broker(wire).close_all()
    assert [(item.subject, item.ok) for item in items] == [
        ("A", True),
        ("B", False),
        ("C", False),
        ("D", False),
        ("E", False),
        ("F", True),
        ("G", False),
    ]
    assert items[0].order is not None
    assert (items[1].code, items[1].message) == (INSUFFICIENT_QTY, "insufficient qty available for order")
    assert str(wire.asked[0].url) == "http://broker/v2/positions?cancel_orders=false"


async def test_positions() -> None:
    position = (await broker(saying([POSITION, {**POSITION, "symbol": "B", "qty": "0"}])).positions())[0]
    assert (position.symbol, position.qty, position.qty_available) == ("AAPL", Decimal(-5), Decimal(-4))
    assert (position.avg_entry_price, position.current_price) == (Decimal("100.0"), Decimal("120.5"))
    assert len(await broker(saying([{**POSITION, "qty": "0"}])).positions()) == 0
    unsigned = await broker(saying({**POSITION, "qty": "5", "qty_available": None})).position("AAPL")
    assert unsigned is not None
    assert (unsigned.qty, unsigned.qty_available) == (-5, -5)
    assert await broker(saying({"code": 40410000}, 404)).position("AAPL") is None


async def test_closing_one() -> None:
    wire = Recorder(saying(ORDER), saying(ORDER))
    client = broker(wire)
    await client.close_position("AAPL")
    await client.close_position("AAPL", Decimal("-2.50"))
    assert [request.url.raw_path for request in wire.asked] == [
        b"/v2/positions/AAPL",
        b"/v2/positions/AAPL?qty=2.50",
    ]


async def test_a_pair_has_no_slash_among_positions_and_no_day_among_orders() -> None:
    wire = Recorder(saying(ORDER), saying({**POSITION, "symbol": "BTCUSD"}), saying([{**POSITION, "symbol": "BTCUSD"}]))
    client = broker(wire)
    await client.close_position("BTC/USD", Decimal("0.01"))
    held = await client.position("BTC/USD")
    assert held is not None
    assert [held.symbol, *[position.symbol for position in await client.positions()]] == ["BTCUSD", "BTCUSD"]
    assert [request.url.raw_path for request in wire.asked[:2]] == [
        b"/v2/positions/BTCUSD?qty=0.01",
        b"/v2/positions/BTCUSD",
    ]
    wire.answers.append(saying(ORDER))
    await client.submit_limit(
        symbol="BTC/USD", side="buy", qty=Decimal(1), limit_price=Decimal(2), client_order_id="lexi-1"
    )
    sent = json.loads(wire.asked[-1].content)
    assert (sent["symbol"], sent["time_in_force"]) == ("BTC/USD", "gtc")


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_a_name_that_would_be_the_path_of_everything_is_not_sent(name: str) -> None:
    wire = Recorder()
    client = broker(wire)
    for call in (client.cancel(name), client.close_position(name), client.order(name)):
        with pytest.raises(BrokerRefused, match="names none"):
            await call
    assert await client.position(name) is None
    assert await client.position("/") is None
    assert wire.asked == []


async def test_a_404_of_somebody_else_is_not_the_brokers_no() -> None:
    client = broker(httpx.Response(404, text="<html>no such page"))
    for call in (client.position("AAPL"), client.order_by_client_id("lexi-1")):
        with pytest.raises(BrokerRefused):
            await call


async def test_an_account_is_known_by_its_number_and_not_by_its_key() -> None:
    said = {"id": "i", "account_number": "PA1", "equity": "1", "last_equity": "1"}
    assert await broker(saying(said)).identity() == "paper:PA1"
    with pytest.raises(BrokerUncertain):
        await broker(saying({**said, "account_number": None})).identity()


async def test_the_account_and_the_clock() -> None:
    said = {"id": "i", "account_number": "PA1", "equity": "103820.56", "last_equity": "103529.24", "status": "ACTIVE"}
    account = await broker(saying(said)).account()
    assert (account.account_number, account.equity, account.last_equity) == (
        "PA1",
        Decimal("103820.56"),
        Decimal("103529.24"),
    )
    times = {"timestamp": "2018-04-01T12:00:00.000-04:00", "next_open": "2018-04-01T12:00:00.000-04:00"}
    clock = await broker(saying({**times, "next_close": "2018-04-01T12:00:00Z", "is_open": False})).clock()
    assert (clock.is_open, clock.at) == (False, datetime(2018, 4, 1, 16, 0, tzinfo=UTC))


async def test_an_open_market_is_only_a_plain_true() -> None:
    times = dict.fromkeys(("timestamp", "next_open", "next_close"), "2018-04-01T12:00:00Z")
    with pytest.raises(BrokerUncertain):
        await broker(saying({**times, "is_open": "true"})).clock()


async def test_fills_are_read_page_by_page() -> None:
    first = [{**FILL, "id": f"f-{number}"} for number in range(100)]
    wire = Recorder(saying(first), saying([{**FILL, "id": "f-100"}]))
    fills = await broker(wire).fills_after(AT)
    assert len(fills) == 101
    assert (fills[0].side, fills[0].qty, fills[0].price, fills[0].at) == ("sell", 30, Decimal("1.63"), AT)
    assert wire.asked[0].url.params["after"] == "2021-03-16T18:38:01.942282Z"
    assert wire.asked[1].url.params["page_token"] == "f-99"


async def test_all_fills() -> None:
    wire = Recorder(saying([]))
    assert await broker(wire).fills_after(None) == []
    assert "after" not in wire.asked[0].url.params


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("refused"), BrokerUnreachable),
        (httpx.ConnectTimeout("slow"), BrokerUnreachable),
        (httpx.PoolTimeout("full"), BrokerUnreachable),
        (httpx.ReadTimeout("slow"), BrokerUncertain),
        (httpx.WriteTimeout("slow"), BrokerUncertain),
        (httpx.ReadError("reset"), BrokerUncertain),
        (httpx.WriteError("reset"), BrokerUncertain),
        (httpx.RemoteProtocolError("nonsense"), BrokerUncertain),
    ],
)
async def test_what_a_failure_lets_one_conclude(error: Exception, expected: type[BrokerError]) -> None:
    asked = 0

    def fail(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise error

    with pytest.raises(expected, match="DELETE /v2/orders"):
        await broker(fail).cancel_all()
    assert asked == 1, "nothing is sent twice"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (saying({"code": 40310000, "message": "insufficient"}, 403), BrokerRefused),
        (saying({"message": "slow down"}, 429), BrokerRefused),
        (httpx.Response(404, text="<html>"), BrokerRefused),
        (httpx.Response(302, headers={"Location": "/"}), BrokerRefused),
        (httpx.Response(408), BrokerUncertain),
        (httpx.Response(500), BrokerUncertain),
        (httpx.Response(503, text="<html>"), BrokerUncertain),
        (httpx.Response(200, text="<html>"), BrokerUncertain),
        (httpx.Response(200), BrokerUncertain),
        (saying({"orders": []}), BrokerUncertain),
        (saying([{"id": "x"}]), BrokerUncertain),
        (saying(["x"]), BrokerUncertain),
        (saying([{**ORDER, "side": "hold"}]), BrokerUncertain),
        (saying([{**ORDER, "qty": "NaN"}]), BrokerUncertain),
        (saying([{**ORDER, "qty": True}]), BrokerUncertain),
        (saying([{**ORDER, "submitted_at": "yesterday"}]), BrokerUncertain),
    ],
)
async def test_what_an_answer_lets_one_conclude(response: httpx.Response, expected: type[BrokerError]) -> None:
    with pytest.raises(expected):
        await broker(response).open_orders()


async def test_a_refusal_says_why() -> None:
    with pytest.raises(BrokerRefused) as refused:
        await broker(saying({"code": 40310000, "message": "insufficient qty"}, 403)).close_position("AAPL")
    assert str(refused.value) == "DELETE /v2/positions/AAPL: 403 40310000 insufficient qty"
    assert (refused.value.status, refused.value.code, refused.value.message) == (403, 40310000, "insufficient qty")


async def test_a_call_has_a_limit() -> None:
    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    client = Broker(ADDRESS, transport=httpx.MockTransport(never), call_limit_s=0.05)
    with pytest.raises(BrokerUncertain, match=r"no answer within 0.05 s"):
        await client.clock()


async def test_numbers_that_are_no_strings_stay_exact() -> None:
    text = json.dumps({**ORDER, "qty": 0}).replace('"qty": 0', '"qty": 0.1')
    response = httpx.Response(200, text=text)
    assert (await broker(response).order("x")).qty == Decimal("0.1")


def test_the_paper_broker_is_the_default() -> None:
    assert broker_address({}) == BrokerAddress("paper", "http://127.0.0.1:8010")
    assert broker_address({"BROKER": "", "PAPER_PORT": "9000"}).base_url == "http://127.0.0.1:9000"
    assert broker_address({"PAPER_URL": "http://paper:8010/", "PAPER_KEY_ID": "k", "PAPER_SECRET_KEY": "s"}) == (
        BrokerAddress("paper", "http://paper:8010", "k", "s")
    )


def test_alpaca_needs_its_keys(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    said = {"BROKER": "alpaca", "ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY_FILE": str(secret)}
    address = broker_address(said)
    assert address == BrokerAddress("alpaca", "https://paper-api.alpaca.markets", "k", "s")
    assert "'s'" not in repr(address)
    assert broker_address({**said, "ALPACA_BASE_URL": "https://api.alpaca.markets/v2"}).base_url == (
        "https://api.alpaca.markets"
    )


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"BROKER": "ibkr"}, "BROKER"),
        ({"BROKER": "alpaca"}, "ALPACA_KEY_ID"),
        ({"BROKER": "alpaca", "ALPACA_KEY_ID": "k"}, "ALPACA_SECRET_KEY"),
        ({"BROKER": "alpaca", "ALPACA_KEY_ID_FILE": "/nowhere/at/all"}, "ALPACA_KEY_ID_FILE"),
        ({"PAPER_PORT": "many"}, "PAPER_PORT"),
        ({"PAPER_PORT": "0"}, "PAPER_PORT"),
        ({"PAPER_URL": "paper:8010"}, "PAPER_URL"),
        ({"PAPER_URL": "http://[paper"}, "PAPER_URL"),
        ({"PAPER_URL": "http://pa\x01per"}, "PAPER_URL"),
    ],
)
def test_what_cannot_be_read_is_named(said: dict[str, str], named: str) -> None:
    with pytest.raises(BrokerConfigError, match=named):
        broker_address(said)


SECRETS = [
    "PKEXAMPLE\nTOPSECRET",
    "TOPSECRET\r\nX: y",
    "TOPSECRET\x00",
    "TOPSECRET\x7f",
    "TOPSECRET\u00e9",
    "TOPSECRET\u2028x",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("name", ["ALPACA_KEY_ID", "ALPACA_SECRET_KEY", "PAPER_KEY_ID", "PAPER_SECRET_KEY"])
def test_a_key_that_no_header_can_hold_is_refused_without_a_word_of_it(tmp_path: Path, name: str, secret: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(secret.encode())
    fit = {"BROKER": name.split("_")[0].lower(), "ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY": "s", "PAPER_KEY_ID": "k"}
    for said, named in (({**fit, name: secret}, name), ({**fit, name: "", f"{name}_FILE": str(file)}, f"{name}_FILE")):
        with pytest.raises(BrokerConfigError) as found:
            broker_address(said)
        assert str(found.value) == f"{named}: a key is one line of printable ASCII letters"


def test_a_secret_that_is_no_text_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"TOP\xffSECRET")
    with pytest.raises(BrokerConfigError, match="PAPER_SECRET_KEY_FILE: a key is one line"):
        broker_address({"PAPER_SECRET_KEY_FILE": str(file)})


def test_an_address_with_a_password_is_refused_without_it() -> None:
    with pytest.raises(BrokerConfigError, match=r"^PAPER_URL: an address has no user and no password in it$"):
        broker_address({"PAPER_URL": "http://user:hidden@paper:8010"})


def test_the_settings_say_the_same_as_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"BROKER": "alpaca", "ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY": "s", "PAPER_PORT": "9000"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert BrokerSettings().address() == broker_address(said)
    monkeypatch.setenv("BROKER", "paper")
    assert BrokerSettings().address().base_url == "http://127.0.0.1:9000"
