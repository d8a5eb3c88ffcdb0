"""What goes wrong on request, over the wire as a client meets it."""

from typing import Any

import httpx
import pytest

from tests.unit.paper_cases import Broker, made


@pytest.fixture
def broker() -> Broker:
    return Broker(made(fill_ms=50))


async def statuses(broker: Broker) -> list[str]:
    return [row["status"] for row in (await broker.http.get("/v2/orders?status=all&direction=asc")).json()]


async def test_latency_passes_before_the_work(broker: Broker) -> None:
    await broker.strike(kind="latency", route="GET /v2/clock", ms=1500)
    await broker.http.get("/v2/account")
    assert broker.slept == []
    clock = (await broker.http.get("/v2/clock")).json()
    assert broker.slept == [1.5]
    assert clock["timestamp"].endswith("15:00:01.500000Z")


@pytest.mark.parametrize(("when", "arrived"), [("before", []), ("after", ["new"])])
async def test_a_reset_hides_whether_the_order_arrived(broker: Broker, when: str, arrived: list[str]) -> None:
    await broker.strike(kind="reset", route="POST /v2/orders", when=when)
    with pytest.raises(httpx.ReadError):
        await broker.buy(1)
    assert await statuses(broker) == arrived
    assert (await broker.buy(1)).status_code == 200


async def test_a_fault_strikes_from_the_nth_call_as_often_as_told(broker: Broker) -> None:
    await broker.strike(kind="error", route="GET /v2/account", nth=2, times=2, status=503, message="busy")
    answers = [await broker.http.get("/v2/account") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200, 200]
    assert answers[1].json() == {"code": 50010000, "message": "busy"}
    [entry] = (await broker.http.get("/paper/faults")).json()
    assert entry["acted"] == 2


@pytest.mark.parametrize(("when", "arrived"), [("before", []), ("after", ["new"])])
async def test_a_silent_socket_is_a_timeout(broker: Broker, when: str, arrived: list[str]) -> None:
    await broker.strike(kind="silence", route="POST /v2/orders", when=when, times=1)
    with pytest.raises(httpx.ReadTimeout):
        await broker.buy(1)
    assert await statuses(broker) == arrived


async def test_every_close_of_the_207_list_may_fail(broker: Broker) -> None:
    await broker.hold(1)
    await broker.hold(1, symbol="MSFT")
    await broker.strike(kind="fail_close", status=500, times=1)
    failed = (await broker.http.delete("/v2/positions")).json()
    assert [item["status"] for item in failed] == [500, 500]
    assert failed[0]["body"] == {"code": 50010000, "message": "internal server error occurred"}
    assert [item["status"] for item in (await broker.http.delete("/v2/positions")).json()] == [200, 200]


async def test_some_closes_may_fail_in_the_list_or_alone(broker: Broker) -> None:
    await broker.hold(1)
    await broker.hold(1, symbol="MSFT")
    await broker.strike(kind="fail_close", symbols=["MSFT"], where="both", status=403, code=40310000, message="no")
    items = (await broker.http.delete("/v2/positions")).json()
    assert [(item["symbol"], item["status"]) for item in items] == [("AAPL", 200), ("MSFT", 403)]
    alone = await broker.http.delete("/v2/positions/MSFT")
    assert (alone.status_code, alone.json()) == (403, {"code": 40310000, "message": "no"})


async def test_some_cancels_may_fail(broker: Broker) -> None:
    await broker.buy(1, limit=50)
    await broker.buy(1, symbol="MSFT", limit=50)
    await broker.strike(kind="fail_cancel", symbols=["AAPL"])
    items = (await broker.http.delete("/v2/orders")).json()
    assert [item["status"] for item in items] == [500, 200]
    assert await statuses(broker) == ["new", "canceled"]
    [still] = (await broker.http.get("/v2/orders")).json()
    assert (await broker.http.delete(f"/v2/orders/{still['id']}")).status_code == 204


async def test_a_cancel_may_stay_pending_a_while_and_holds_the_quantity(broker: Broker) -> None:
    await broker.hold(2)
    await broker.post("sell", 2, limit=500)
    await broker.strike(kind="slow_cancel", for_s=2)
    [item] = (await broker.http.delete("/v2/orders")).json()
    assert item["status"] == 200
    assert (await broker.http.get("/v2/orders")).json()[0]["status"] == "pending_cancel"
    assert (await broker.http.delete("/v2/positions/AAPL")).status_code == 403
    assert (await broker.http.delete(f"/v2/orders/{item['id']}")).status_code == 204
    broker.wait(2000)
    assert (await broker.http.get("/v2/orders")).json() == []
    assert (await broker.http.delete("/v2/positions/AAPL")).status_code == 200


async def test_a_cancel_may_stay_pending_until_the_fault_is_taken_away(broker: Broker) -> None:
    await broker.buy(1, limit=50)
    fault_id = await broker.strike(kind="slow_cancel")
    await broker.http.delete("/v2/orders")
    broker.wait(3_600_000)
    assert await statuses(broker) == ["pending_cancel"]
    await broker.http.delete(f"/paper/faults/{fault_id}")
    assert await statuses(broker) == ["canceled"]


async def test_an_order_whose_cancel_is_pending_may_still_fill(broker: Broker) -> None:
    await broker.buy(1)
    await broker.strike(kind="slow_cancel")
    await broker.http.delete("/v2/orders")
    broker.wait(50)
    assert await statuses(broker) == ["filled"]


async def test_a_closed_position_is_there_again_once(broker: Broker) -> None:
    await broker.hold(3)
    await broker.strike(kind="reappear", after_ms=500)
    await broker.http.delete("/v2/positions/AAPL")
    broker.wait(60)
    assert (await broker.http.get("/v2/positions")).json() == []
    broker.wait(500)
    [again] = (await broker.http.get("/v2/positions")).json()
    assert again["qty"] == "3"
    await broker.http.delete("/v2/positions/AAPL")
    broker.wait(60_000)
    assert (await broker.http.get("/v2/positions")).json() == []
    assert await statuses(broker) == ["filled"] * 4


async def test_a_closed_market_takes_orders_and_fills_none(broker: Broker) -> None:
    await broker.hold(1)
    await broker.strike(kind="market", open=False, for_s=60)
    clock = (await broker.http.get("/v2/clock")).json()
    assert clock["is_open"] is False
    assert clock["next_open"] == "2024-03-05T15:01:01.000000Z"
    assert (await broker.http.delete("/v2/positions")).json()[0]["body"]["status"] == "accepted"
    broker.wait(59_000)
    assert await statuses(broker) == ["filled", "accepted"]
    broker.wait(2000)
    assert (await broker.http.get("/v2/clock")).json()["is_open"] is True
    broker.wait(50)
    assert (await broker.http.get("/v2/positions")).json() == []


async def test_fills_may_be_held_back(broker: Broker) -> None:
    await broker.strike(kind="hold_fills", symbols=["AAPL"])
    await broker.buy(1)
    await broker.buy(1, symbol="MSFT")
    broker.wait(10_000)
    assert await statuses(broker) == ["new", "filled"]
    await broker.http.delete("/paper/faults")
    assert await statuses(broker) == ["filled", "filled"]


async def test_an_order_may_be_refused_with_a_message(broker: Broker) -> None:
    await broker.strike(kind="reject", symbols=["AAPL"], message="asset is halted", times=1)
    answer = await broker.buy(1)
    assert (answer.status_code, answer.json()["message"]) == (403, "asset is halted")
    assert (await broker.buy(1)).status_code == 200


async def test_an_order_may_be_taken_and_rejected_later(broker: Broker) -> None:
    await broker.strike(kind="reject", how="later")
    assert (await broker.buy(1)).json()["status"] == "accepted"
    broker.wait(1000)
    assert await statuses(broker) == ["rejected"]
    assert (await broker.http.get("/v2/positions")).json() == []


async def test_a_rejection_leaves_closes_alone(broker: Broker) -> None:
    await broker.hold(1)
    await broker.strike(kind="reject")
    assert (await broker.http.delete("/v2/positions/AAPL")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "nothing"}, "nothing"),
        ({"kind": "reset", "route": "POST /v2/order"}, "no such route"),
        ({"kind": "latency"}, "ms"),
        ({"kind": "market", "times": 1}, "times"),
        ({"kind": "reset", "nth": 0}, "nth"),
        ({}, "kind"),
    ],
)
async def test_a_fault_that_makes_no_sense_is_named(broker: Broker, fields: dict[str, Any], named: str) -> None:
    answer = await broker.http.post("/paper/faults", json=fields)
    assert answer.status_code == 422
    assert named in answer.json()["message"]
    assert (await broker.http.get("/paper/faults")).json() == []


async def test_faults_are_listed_and_taken_away_one_by_one_or_all(broker: Broker) -> None:
    first = await broker.strike(kind="hold_fills", for_s=10)
    second = await broker.strike(kind="reset", route="GET /v2/clock")
    listed = (await broker.http.get("/paper/faults")).json()
    assert [(entry["id"], entry["kind"]) for entry in listed] == [(first, "hold_fills"), (second, "reset")]
    assert listed[0]["until"] == "2024-03-05T15:00:10.000000Z"
    assert (await broker.http.delete(f"/paper/faults/{first}")).status_code == 204
    assert (await broker.http.delete("/paper/faults")).status_code == 204
    assert (await broker.http.get("/paper/faults")).json() == []


async def test_faults_do_not_strike_the_calls_that_take_them_away(broker: Broker) -> None:
    await broker.strike(kind="error", times=None)
    assert (await broker.http.get("/v2/account")).status_code == 500
    assert (await broker.http.delete("/paper/faults")).status_code == 204
    assert (await broker.http.get("/v2/account")).status_code == 200
