"""Answers of the broker that make no sense: whatever they hold, they come out as one of its errors."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerRefused, BrokerUncertain, BrokerUnreachable
from tests.unit.test_trading_broker import FILL, ORDER, POSITION, Recorder, broker, saying

STRANGE = st.sampled_from(
    [
        "",
        "o\ud800",
        "\x00",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
        "2024-01-01",
        "NaN",
        "-Infinity",
        "1e999999999",
        "1e-999999999",
        "9" * 5000,
        10**400,
        2**70,
        "207",
        200,
        404,
        True,
    ]
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRANGE | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
GOOD: dict[str, Any] = {
    **ORDER,
    **POSITION,
    **FILL,
    "account_number": "PA1",
    "equity": "1",
    "last_equity": "1",
    "timestamp": "2024-01-01T00:00:00Z",
    "next_open": "2024-01-01T00:00:00Z",
    "next_close": "2024-01-01T00:00:00Z",
    "is_open": True,
}


def changed(fields: dict[str, Any]) -> dict[str, Any]:
    return {**GOOD, **fields}


THINGS = st.dictionaries(st.sampled_from(sorted(GOOD)), JSONS).map(changed)
ITEMS = st.fixed_dictionaries({}, optional={"id": JSONS, "symbol": JSONS, "status": JSONS, "body": THINGS | JSONS})
ANSWERS = JSONS | THINGS | st.lists(THINGS | ITEMS | JSONS, max_size=3)
READS: dict[str, Callable[[Broker], Awaitable[object]]] = {
    "order": lambda client: client.order("x"),
    "order_by_client_id": lambda client: client.order_by_client_id("x"),
    "open_orders": lambda client: client.open_orders(),
    "cancel_all": lambda client: client.cancel_all(),
    "cancel": lambda client: client.cancel("x"),
    "positions": lambda client: client.positions(),
    "position": lambda client: client.position("AAPL"),
    "close_all": lambda client: client.close_all(),
    "account": lambda client: client.account(),
    "identity": lambda client: client.identity(),
    "clock": lambda client: client.clock(),
    "fills": lambda client: client.fills_after(None),
}


async def asked(client: Broker, name: str) -> object:
    """What a read makes of an answer; an error that is not the broker's comes out."""
    try:
        return await READS[name](client)
    except (BrokerUncertain, BrokerRefused) as error:
        return error


async def asked_all(body: bytes, status: int) -> list[object]:
    client = broker(lambda _: httpx.Response(status, content=body))
    return [await asked(client, name) for name in READS]


@given(answer=ANSWERS, status=st.sampled_from([200, 200, 200, 207, 302, 403, 404, 422, 500]))
def test_no_answer_makes_anything_but_an_error_of_the_broker(answer: object, status: int) -> None:
    for found in asyncio.run(asked_all(json.dumps(answer).encode(), status)):
        assert f"{found} {found!r}".encode(), "it can be stored and told"
        assert status < 300 or not isinstance(found, list)


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b"1e99999999999999999999",
        b'[{"id":"o1","symbol":"A","status":Infinity}]',
        b'{"qty": NaN}',
        b"\xff\xfe",
        b"\x00",
        b"",
        b"null",
    ],
)
async def test_a_body_that_nobody_can_read_is_uncertain(name: str, body: bytes) -> None:
    found = await asked(broker(httpx.Response(200, content=body)), name)
    assert isinstance(found, BrokerUncertain) or (name == "cancel" and body == b"")


@pytest.mark.parametrize(
    "field",
    [
        {"id": "o\ud800"},
        {"id": 5},
        {"symbol": "A\x00"},
        {"status": ["new"]},
        {"side": {"buy": 1}},
        {"qty": "1e999999999"},
        {"qty": "1" * 101},
        {"qty": [["1"]]},
        {"limit_price": "1e-100"},
        {"submitted_at": "0001-01-01T00:00:00+05:00"},
        {"submitted_at": "0001-01-01T00:00:00Z"},
        {"submitted_at": "9999-12-31T23:59:59-05:00"},
        {"submitted_at": 1_700_000_000},
    ],
)
async def test_a_field_that_cannot_be_worked_with_is_uncertain(field: dict[str, Any]) -> None:
    with pytest.raises(BrokerUncertain, match="cannot be read"):
        await broker(httpx.Response(200, content=json.dumps([{**ORDER, **field}]))).open_orders()


async def test_words_that_are_only_shown_are_made_printable() -> None:
    said = json.dumps({**ORDER, "client_order_id": "a\nb\ud800\x00", "type": 5})
    order = await broker(httpx.Response(200, content=said)).order("x")
    assert (order.client_order_id, order.type) == ("a?b??", "")
    refusal = httpx.Response(403, content=json.dumps({"code": True, "message": ["no"]}))
    with pytest.raises(BrokerRefused) as refused:
        await broker(refusal).cancel_all()
    assert (refused.value.code, refused.value.message) == (None, "Forbidden")


@pytest.mark.parametrize("status", ["Infinity", "1e999999999", "true", "null", '"20"', "1000", "[]", "200.5"])
async def test_an_item_whose_status_is_none_is_no_success(status: str) -> None:
    said = f'[{{"id": "a", "status": {status}}}, {{"id": "b", "status": 200}}]'
    if status == "Infinity":
        with pytest.raises(BrokerUncertain, match="not JSON"):
            await broker(httpx.Response(207, text=said)).cancel_all()
        return
    items = await broker(httpx.Response(207, text=said)).cancel_all()
    assert [(item.subject, item.ok) for item in items] == [("a", False), ("b", True)]


async def test_an_item_with_an_error_of_any_kind_is_no_success() -> None:
    said = [{"symbol": "A", "status": 200, "body": {"code": "40310000", "message": "no"}}]
    [item] = await broker(saying(said, 207)).close_all()
    assert (item.subject, item.ok, item.message) == ("A", False, "no")


async def test_an_answer_without_an_end_is_cut_off() -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b" " * 1_000_000

    with pytest.raises(BrokerUncertain, match="longer than"):
        await broker(httpx.Response(200, content=endless())).positions()


async def test_a_page_of_fills_that_comes_again_is_not_the_end() -> None:
    page_of_100 = [{**FILL, "id": f"f-{number}"} for number in range(100)]
    with pytest.raises(BrokerUncertain, match="came again"):
        await broker(saying(page_of_100)).fills_after(None)


async def test_what_cannot_be_written_is_not_sent() -> None:
    wire = Recorder()
    with pytest.raises(BrokerUnreachable, match="cannot be written"):
        await broker(wire).order_by_client_id("lexi-\ud800")
    with pytest.raises(BrokerUnreachable, match="cannot be written"):
        await broker(wire).submit_limit(
            symbol="A\ud800", side="buy", qty=Decimal(1), limit_price=Decimal(1), client_order_id="lexi-1"
        )
    assert wire.asked == []


@pytest.mark.parametrize("error", [UnicodeError("odd"), OSError("odd"), RuntimeError("odd"), httpx.InvalidURL("odd")])
async def test_a_failure_of_no_known_kind_is_uncertain(error: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(BrokerUncertain, match="odd"):
        await broker(fail).cancel_all()
