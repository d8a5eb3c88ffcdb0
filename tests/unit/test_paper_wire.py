"""Alpaca's wire, over an httpx transport: what goes in, what comes out, and how it refuses."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from services.paper.app import PaperKeys
from services.paper.asked import Ask
from services.paper.faults import ROUTES
from services.paper.hours import open_hours
from services.paper.requests import CALLS as OWN_CALLS
from services.paper.routes import CALLS, Answer
from services.paper.types import Refusal
from tests.unit.paper_cases import CASH, Broker, after, bought, made, order

UNKNOWN = "3a1d7c32-0000-4000-8000-000000000000"


@pytest.fixture
def broker() -> Broker:
    return Broker(made(fill_ms=50))


def order_body(**fields: Any) -> dict[str, Any]:
    return {"symbol": "AAPL", "side": "buy", "qty": "1", "type": "market", "time_in_force": "day", **fields}


async def test_an_order_is_taken_filled_and_told_in_alpacas_form(broker: Broker) -> None:
    body = order_body(qty=10, type="limit", limit_price="100.50", client_order_id="lexi-1")
    taken = (await broker.http.post("/v2/orders", json=body)).json()
    assert taken["status"] == "new"
    assert taken["qty"] == "10"
    assert taken["limit_price"] == "100.5"
    assert taken["filled_avg_price"] is None
    assert taken["submitted_at"].endswith("Z")
    broker.wait(50)
    found = (await broker.http.get("/v2/orders:by_client_order_id", params={"client_order_id": "lexi-1"})).json()
    assert (found["id"], found["status"], found["filled_qty"]) == (taken["id"], "filled", "10")
    assert found["filled_avg_price"] == "100"
    assert (await broker.http.get(f"/v2/orders/{taken['id']}")).json() == found
    [position] = (await broker.http.get("/v2/positions")).json()
    shown = {name: position[name] for name in ("symbol", "qty", "qty_available", "avg_entry_price", "current_price")}
    assert shown == {
        "symbol": "AAPL",
        "qty": "10",
        "qty_available": "10",
        "avg_entry_price": "100",
        "current_price": "100",
    }
    account = (await broker.http.get("/v2/account")).json()
    assert account["status"] == "ACTIVE"
    assert account["account_number"].startswith("PAPER")
    assert (account["equity"], account["last_equity"]) == (str(CASH), str(CASH))
    assert (account["cash"], account["buying_power"]) == ("999000", "1999000")
    [fill] = (await broker.http.get("/v2/account/activities/FILL")).json()
    assert (fill["order_id"], fill["qty"], fill["price"], fill["type"]) == (taken["id"], "10", "100", "fill")
    clock = (await broker.http.get("/v2/clock")).json()
    assert clock["is_open"] is True
    assert datetime.fromisoformat(clock["timestamp"]) == broker.now


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"qty": "0"}, 40010001, "invalid qty"),
        ({"qty": "-1"}, 40010001, "invalid qty"),
        ({"qty": None}, 40010001, "invalid qty"),
        ({"qty": "NaN"}, 40010001, "invalid qty"),
        ({"qty": True}, 40010001, "invalid qty"),
        ({"qty": "1.0000000001"}, 40010001, "invalid qty"),
        ({"qty": "1e99"}, 40010001, "invalid qty"),
        ({"symbol": ""}, 40010001, "symbol"),
        ({"symbol": "\ud800"}, 40010001, "symbol"),
        ({"symbol": "NONE"}, 42210000, "could not find asset"),
        ({"side": "hold"}, 40010001, "invalid side"),
        ({"type": "stop"}, 40010001, "invalid type"),
        ({"time_in_force": ["day"]}, 40010001, "invalid time_in_force"),
        ({"type": "limit"}, 42210000, "limit orders require limit_price"),
        ({"limit_price": 5}, 42210000, "must not have limit_price"),
        ({"client_order_id": "x" * 49}, 40010001, "client_order_id"),
        ({"client_order_id": 5}, 40010001, "client_order_id"),
        ({"notional": "10"}, 42210000, "simple orders"),
        ({"order_class": {}}, 42210000, "simple orders"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(
    broker: Broker, fields: dict[str, Any], code: int, message: str
) -> None:
    answer = await broker.http.post("/v2/orders", content=json.dumps(order_body(**fields)))
    assert answer.status_code == 422
    assert answer.json()["code"] == code
    assert message in answer.json()["message"]
    assert (await broker.http.get("/v2/orders?status=all")).json() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
async def test_what_is_no_json_object_is_a_400(broker: Broker, body: bytes) -> None:
    answer = await broker.http.post("/v2/orders", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 40010000)


async def test_the_same_id_again_is_refused(broker: Broker) -> None:
    body = order_body(client_order_id="mine")
    await broker.http.post("/v2/orders", json=body)
    again = await broker.http.post("/v2/orders", json=body)
    assert (again.status_code, again.json()) == (422, {"code": 40010001, "message": "client_order_id must be unique"})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/v2/orders/{UNKNOWN}", 404, 40410000),
        ("DELETE", f"/v2/orders/{UNKNOWN}", 404, 40410000),
        ("GET", "/v2/orders:by_client_order_id?client_order_id=none", 404, 40410000),
        ("GET", "/v2/positions/AAPL", 404, 40410000),
        ("DELETE", "/v2/positions/AAPL", 404, 40410000),
        ("GET", "/v2/orders?limit=501", 422, 40010001),
        ("GET", "/v2/orders?status=some", 422, 40010001),
        ("GET", "/v2/orders?after=yesterday", 422, 40010001),
        ("GET", "/v2/account/activities/FILL?page_token=none", 422, 40010001),
        ("DELETE", "/v2/positions?cancel_orders=True", 422, 40010001),
        ("DELETE", "/paper/faults/1", 404, 40410000),
        ("GET", "/v2/nothing", 404, 40400000),
        ("PATCH", "/v2/orders", 405, 40500000),
    ],
)
async def test_what_is_not_there_is_named(broker: Broker, method: str, path: str, status: int, code: int) -> None:
    answer = await broker.http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_orders_come_in_pages_that_lose_none(broker: Broker) -> None:
    for number in range(7):
        assert (await broker.buy(1, limit=50 + number)).status_code == 200
    found: list[str] = []
    last = ""
    while True:
        query = {"status": "all", "limit": "3", "direction": "asc"} | ({"after": last} if last else {})
        rows = (await broker.http.get("/v2/orders", params=query)).json()
        if not rows:
            break
        found += [row["limit_price"] for row in rows]
        last = rows[-1]["submitted_at"]
    assert found == [str(50 + number) for number in range(7)]
    newest = (await broker.http.get("/v2/orders", params={"limit": 2})).json()
    assert [row["limit_price"] for row in newest] == ["56", "55"]
    assert (await broker.http.get("/v2/orders", params={"symbols": "MSFT,IBM"})).json() == []


async def test_fills_come_in_pages_by_token_both_ways() -> None:
    broker = Broker(made(slices=5))
    await broker.hold(5)
    newest = (await broker.http.get("/v2/account/activities/FILL", params={"page_size": 2})).json()
    assert [fill["cum_qty"] for fill in newest] == ["5", "4"]
    found: list[str] = []
    query = {"page_size": "2", "direction": "asc"}
    while rows := (await broker.http.get("/v2/account/activities/FILL", params=query)).json():
        found += [row["cum_qty"] for row in rows]
        query["page_token"] = rows[-1]["id"]
    assert found == ["1", "2", "3", "4", "5"]
    later = {"after": newest[1]["transaction_time"]}
    assert len((await broker.http.get("/v2/account/activities/FILL", params=later)).json()) == 1


async def test_everything_is_cancelled_and_closed_item_by_item(broker: Broker) -> None:
    for symbol in ("AAPL", "MSFT", "BTC/USD"):
        await broker.hold(2, symbol=symbol)
    resting = [(await broker.buy(1, limit=50 + number)).json()["id"] for number in range(3)]
    cancelled = await broker.http.delete("/v2/orders")
    assert cancelled.status_code == 207
    assert cancelled.json() == [{"id": order_id, "status": 200} for order_id in resting]
    closed = await broker.http.delete("/v2/positions", params={"cancel_orders": "false"})
    assert closed.status_code == 207
    assert [(item["symbol"], item["status"]) for item in closed.json()] == [
        ("AAPL", 200),
        ("BTCUSD", 200),
        ("MSFT", 200),
    ]
    assert {item["body"]["side"] for item in closed.json()} == {"sell"}
    again = await broker.http.delete("/v2/positions")
    assert {item["body"]["code"] for item in again.json()} == {40310000}
    broker.wait(50)
    assert (await broker.http.get("/v2/positions")).json() == []
    assert (await broker.http.get("/v2/orders")).json() == []


async def test_a_cancel_is_204_and_too_late_a_422(broker: Broker) -> None:
    resting = (await broker.buy(1, limit=50)).json()["id"]
    assert (await broker.http.delete(f"/v2/orders/{resting}")).status_code == 204
    late = await broker.http.delete(f"/v2/orders/{resting}")
    assert late.status_code == 422
    assert late.json() == {"code": 42210000, "message": 'order is already in "canceled" state'}


async def test_a_part_of_a_position_is_closed_by_quantity_or_share(broker: Broker) -> None:
    await broker.hold(10)
    assert (await broker.http.delete("/v2/positions/AAPL", params={"qty": "2.5"})).json()["qty"] == "2.5"
    assert (await broker.http.delete("/v2/positions/AAPL", params={"percentage": "25"})).json()["qty"] == "2.5"
    [position] = (await broker.http.get("/v2/positions")).json()
    assert (position["qty"], position["qty_available"]) == ("10", "5")
    assert (await broker.http.delete("/v2/positions/AAPL", params={"percentage": "101"})).status_code == 422
    assert (await broker.http.delete("/v2/positions/AAPL", params={"qty": "6"})).status_code == 403


async def test_a_pair_has_a_slash_in_orders_and_none_in_positions(broker: Broker) -> None:
    await broker.hold(1, symbol="BTC/USD")
    [position] = (await broker.http.get("/v2/positions")).json()
    assert (position["symbol"], position["asset_class"]) == ("BTCUSD", "crypto")
    assert (await broker.http.get("/v2/positions/BTCUSD")).json() == position
    closing = (await broker.http.delete("/v2/positions/BTCUSD")).json()
    assert (closing["symbol"], closing["time_in_force"]) == ("BTC/USD", "gtc")
    broker.wait(50)
    fills = (await broker.http.get("/v2/account/activities/FILL")).json()
    assert {fill["symbol"] for fill in fills} == {"BTC/USD"}
    assert {row["symbol"] for row in (await broker.http.get("/v2/orders?status=all")).json()} == {"BTC/USD"}


@pytest.mark.parametrize("written", ["BTC/USD", "BTC%2FUSD", "btcusd"])
async def test_a_pair_with_its_slash_is_no_position(broker: Broker, written: str) -> None:
    await broker.hold(1, symbol="BTC/USD")
    for method in ("GET", "DELETE"):
        answer = await broker.http.request(method, f"/v2/positions/{written}")
        assert (answer.status_code, answer.json()["code"]) == (404, 40410000)
    assert (await broker.http.get("/v2/orders")).json() == []


async def test_a_pair_has_no_day(broker: Broker) -> None:
    answer = await broker.http.post("/v2/orders", json=order_body(symbol="BTC/USD"))
    assert (answer.status_code, answer.json()) == (
        422,
        {"code": 42210000, "message": "invalid crypto time_in_force"},
    )
    assert (await broker.http.post("/v2/orders", json=order_body(symbol="BTC/USD", time_in_force="gtc"))).is_success


async def test_of_a_pair_only_what_is_held_can_be_sold(broker: Broker) -> None:
    refused = await broker.post("sell", 2, symbol="BTC/USD")
    assert refused.status_code == 403
    assert refused.json() == {
        "code": 40310000,
        "message": "insufficient balance for BTC (requested: 2, available: 0)",
        "symbol": "USD",
        "balance": "0",
        "available": "0",
    }
    await broker.hold(2, symbol="BTC/USD")
    assert (await broker.post("sell", 3, symbol="BTC/USD")).status_code == 403
    assert (await broker.post("sell", 2, symbol="BTC/USD")).status_code == 200
    assert (await broker.post("sell", 1, symbol="BTC/USD")).status_code == 403


@pytest.mark.parametrize("written", ["BTC/USD", "BTCUSD"])
async def test_a_fault_of_a_pair_is_named_either_way(broker: Broker, written: str) -> None:
    await broker.hold(1, symbol="BTC/USD")
    await broker.strike(kind="fail_close", symbols=[written], where="both")
    assert (await broker.http.delete("/v2/positions/BTCUSD")).status_code == 500


async def test_a_short_position_is_written_in_negative_numbers(broker: Broker) -> None:
    await broker.post("sell", 3)
    broker.wait(50)
    [position] = (await broker.http.get("/v2/positions")).json()
    shown = {name: position[name] for name in ("qty", "qty_available", "side", "market_value")}
    assert shown == {"qty": "-3", "qty_available": "-3", "side": "short", "market_value": "-300"}


async def test_marks_set_by_hand_stay_until_they_are_given_back(broker: Broker) -> None:
    answer = await broker.http.put("/paper/marks", json={"AAPL": 101.25, "IBM": "7"})
    assert answer.json()["AAPL"] == {"price": "101.25", "by_hand": True}
    broker.exchange.ledger.set_mark("AAPL", broker.exchange.ledger.marks["MSFT"].price)
    assert (await broker.http.get("/paper/marks")).json()["AAPL"]["price"] == "101.25"
    given_back = (await broker.http.put("/paper/marks", json={"AAPL": None})).json()
    assert given_back["AAPL"] == {"price": "101.25", "by_hand": False}
    wrong = await broker.http.put("/paper/marks", json={"AAPL": 5, "IBM": -1})
    assert wrong.status_code == 422
    assert (await broker.http.get("/paper/marks")).json()["AAPL"]["price"] == "101.25"


async def test_with_a_key_nothing_is_open_but_the_probes() -> None:
    broker = Broker(made(), keys=PaperKeys("key", "secret"))
    right = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    for name in [*CALLS, "POST /paper/faults", "PUT /paper/marks"]:
        method, path = name.split(" ")
        for headers in ({}, {**right, "APCA-API-KEY-ID": "other"}, {**right, "APCA-API-SECRET-KEY": "other"}):
            answer = await broker.http.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, 40110000)
    assert (await broker.http.get("/v2/account", headers=right)).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert (await broker.http.get(path)).status_code == 200


async def test_out_of_hours_orders_wait_for_the_opening() -> None:
    broker = Broker(made(hours=open_hours("XNYS")))
    await broker.hold(1)
    broker.now = datetime(2024, 3, 8, 22, tzinfo=UTC)  # Friday evening; clocks change on Sunday
    clock = (await broker.http.get("/v2/clock")).json()
    assert clock["is_open"] is False
    assert clock["next_open"] == "2024-03-11T13:30:00.000000Z"
    assert clock["next_close"] == "2024-03-11T20:00:00.000000Z"
    closing = (await broker.http.delete("/v2/positions/AAPL")).json()
    assert closing["status"] == "accepted"
    broker.now = datetime(2024, 3, 11, 13, 29, tzinfo=UTC)
    assert (await broker.http.get(f"/v2/orders/{closing['id']}")).json()["status"] == "accepted"
    broker.now = datetime(2024, 3, 11, 13, 30, tzinfo=UTC)
    assert (await broker.http.get(f"/v2/orders/{closing['id']}")).json()["status"] == "new"
    broker.wait(50)
    assert (await broker.http.get(f"/v2/orders/{closing['id']}")).json()["status"] == "filled"


async def test_a_half_day_ends_early() -> None:
    broker = Broker(made(hours=open_hours("XNYS")))
    broker.now = datetime(2024, 11, 29, 17, 59, tzinfo=UTC)
    clock = (await broker.http.get("/v2/clock")).json()
    assert (clock["is_open"], clock["next_close"]) == (True, "2024-11-29T18:00:00.000000Z")


def test_a_fault_can_name_every_route() -> None:
    assert set(ROUTES) == set(CALLS)


WORDS = st.sampled_from(
    [
        "",
        "1",
        "-1",
        "1.5",
        "9" * 5000,
        "NaN",
        "1e999",
        "0001-01-01T00:00:00+14:00",
        "2024-01-01",
        "AAPL",
        "true",
        "\ud800x",
    ]
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "symbol",
    "side",
    "qty",
    "type",
    "time_in_force",
    "limit_price",
    "client_order_id",
    "kind",
    "ms",
    "for_s",
    "route",
]
KINDS = ["buy", "limit", "market", "day", "hold_fills", "latency", "slow_cancel", "reappear", "reset", "AAPL"]
BODIES = JSONS | st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(KINDS) | JSONS)
QUERY = ["limit", "after", "until", "status", "direction", "symbols", "page_size", "page_token", "qty", "percentage"]


@given(
    name=st.sampled_from([*CALLS, *OWN_CALLS]),
    part=WORDS.filter(str.isascii) | st.text(st.characters(codec="utf-8"), max_size=5),
    query=st.dictionaries(st.sampled_from(QUERY), WORDS.filter(lambda word: "\ud800" not in word)),
    body=BODIES,
)
def test_nothing_one_may_ask_breaks_it(name: str, part: str, query: dict[str, str], body: object) -> None:
    exchange = made()
    call = {**CALLS, **OWN_CALLS}[name]
    bought(exchange, 3)
    order(exchange, "buy", 1, limit=50)
    ask = Ask(path={"id": part, "symbol": part}, query=query, body=json.dumps(body).encode())
    try:
        answer = call(exchange, ask)
    except Refusal as refusal:
        answer = Answer(refusal.body, refusal.status)
    assert answer.status < 500
    assert JSONResponse(answer.content, answer.status).body
    after(exchange, 1000)


async def test_the_official_paths_are_all_answered(broker: Broker) -> None:
    await broker.hold(1)
    answers: list[httpx.Response] = [
        await broker.http.get(path)
        for path in ("/v2/orders", "/v2/positions", "/v2/account", "/v2/clock", "/v2/account/activities/FILL")
    ]
    assert {answer.status_code for answer in answers} == {200}
