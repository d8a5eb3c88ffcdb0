"""The account's routes on real rows, made by reconciliation; and cancelling, which needs the broker alone."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.http_app import Edge, frame
from libs.keys import KeyRing, create_key
from services.api.strategist import account
from tests.integration.api_app import database_away
from tests.integration.reconcile_cases import ACCOUNT, Desk, FakeAlpaca, open_desk
from tools.local_stack.postgres import EmbeddedPostgres


@dataclass
class House:
    """The routes over HTTP with a key of the scopes read and trade, and the desk behind them."""

    http: httpx.AsyncClient
    desk: Desk
    keys: Path

    async def get(self, route: str, **query: Any) -> Any:
        answer = await self.http.get(f"/strategist/{route}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def delete(self, order_id: object, token: str | None = None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.http.delete(f"/strategist/orders/{order_id}", headers=headers)


@pytest.fixture
async def house(engine: AsyncEngine, tmp_path: Path) -> AsyncGenerator[House, None]:
    keys = tmp_path / "keys.json"
    token = create_key(keys, "desk-1", frozenset({"read", "trade"}))
    async with open_desk(engine, FakeAlpaca()) as desk:
        await desk.reconcile()
        app = frame(title="test", keys=KeyRing.load(keys), checks={})
        app.state.api, app.state.strategist = SimpleNamespace(engine=engine), SimpleNamespace(broker=desk.broker)
        app.include_router(account.router)
        transport = httpx.ASGITransport(Edge(app, max_body_bytes=1024))
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as http:
            yield House(http, desk, keys)


async def test_orders_fills_and_positions_are_as_reconciled(house: House) -> None:
    desk = house.desk
    order_id = await desk.send(qty=10)
    fill_id = desk.alpaca.fill(desk.at_broker(order_id), 3, "100.123456789")
    await desk.reconcile()
    (order,) = await house.get("orders")
    assert (order["id"], order["origin"], order["status"]) == (str(order_id), "entry", "partially_filled")
    assert (order["qty"], order["filled_qty"], order["filled_avg_price"]) == (10, 3, 100.123456789)
    assert (order["client_order_id"], order["broker_id"]) == ("mine", desk.at_broker(order_id))
    (fill,) = await house.get("fills")
    assert (fill["id"], fill["order_id"], fill["price"], fill["qty"]) == (fill_id, str(order_id), 100.123456789, 3)
    (position,) = await house.get("positions")
    assert position.pop("reconciled_at").endswith("Z")
    assert position == {
        "ticker": "AAPL",
        "qty": 3,
        "expected_qty": 3,
        "avg_entry_price": 100,
        "market_price": 101.5,
    }
    read = await house.get("account")
    assert (read["account"], read["equity"], read["market_open"], read["differences"]) == (
        ACCOUNT,
        100500.5,
        True,
        [],
    )


async def test_numbers_are_numbers_of_at_most_15_digits(house: House) -> None:
    await house.desk.change("update broker_state set equity = 100500.123456789012345678")
    text = (await house.http.get("/strategist/account")).text
    assert '"equity":100500.123456789' in text
    assert json.loads(text)["equity"] == 100500.123456789


async def test_before_the_first_reconciliation_there_is_no_account(house: House) -> None:
    await house.desk.change("delete from broker_state")
    answer = await house.http.get("/strategist/account")
    assert (answer.status_code, "services.jobs" in answer.json()["detail"]) == (404, True)
    assert await house.get("positions") == []


@pytest.mark.parametrize("same_moment", [True, False])
async def test_pages_have_every_row_once(house: House, same_moment: bool) -> None:
    desk = house.desk
    age = "0" if same_moment else "n"
    await desk.change(
        f"""
        insert into orders (id, origin, ticker, side, qty, status, broker_id, created_at)
        select gen_random_uuid(), 'entry', case when n % 2 = 0 then 'AAPL' else 'IBM' end, 'buy', n, 'filled', 'b' || n,
          now() - {age} * interval '1 second' from generate_series(1, 23) n
        """
    )
    await desk.change(
        f"""
        insert into fills (id, broker_id, ticker, side, qty, price, at)
        select 'f' || n, 'b' || n, 'AAPL', 'buy', n, 1, now() - {age} * interval '1 second'
        from generate_series(1, 23) n
        """
    )
    for route, count in (("orders", 23), ("fills", 23)):
        seen = await all_pages(house, route)
        assert len(seen) == len(set(seen)) == count
    assert len(await all_pages(house, "orders", ticker="IBM")) == 12
    if not same_moment:
        assert [row["qty"] for row in await house.get("orders", limit=3)] == [1, 2, 3]


async def all_pages(house: House, route: str, *, name: str = "id", **query: Any) -> list[str]:
    seen: list[str] = []
    while True:
        page = await house.get(route, limit=5, **query)
        if not page:
            return seen
        seen += [row[name] for row in page]
        query["before"] = seen[-1]


async def test_recent_verdicts_come_newest_first_by_ticker_and_page(house: House) -> None:
    await house.desk.change(
        """
        insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
          ref_price, reduce_only, verdict, would_have, mode, reasons, decision_age_s, payload, hash)
        select n, gen_random_uuid(), now(), 'desk-1', 's', 'o' || n, 'i', true,
          case when n % 2 = 0 then 'AAPL' else 'IBM' end, 'buy', 1.5, 101.25, false, 'allow', 'deny', 'shadow',
          array['POLICY_DENY', 'STALE_DECISION'], 12.5, '{}', 'h' || n from generate_series(1, 12) n
        """
    )
    rows = await house.get("recent", limit=2)
    assert [row["seq"] for row in rows] == [12, 11]
    newest = rows[0]
    assert (newest["verdict"], newest["would_have"], newest["mode"]) == ("allow", "deny", "shadow")
    assert newest["reasons"] == ["POLICY_DENY", "STALE_DECISION"]
    assert (newest["qty"], newest["ref_price"], newest["decision_age_s"]) == (1.5, 101.25, 12.5)
    assert (newest["key_name"], newest["strategy"], newest["hash"]) == ("desk-1", "s", "h12")
    assert [row["seq"] for row in await house.get("recent", ticker="IBM")] == [11, 9, 7, 5, 3, 1]
    assert len(await all_pages(house, "recent", name="verdict_id")) == 12
    assert len(await all_pages(house, "recent", name="verdict_id", ticker="AAPL")) == 6


@pytest.mark.parametrize("query", ["limit=501", "limit=0", "before=x", "tickr=AAPL"])
async def test_what_cannot_be_asked_is_refused(house: House, query: str) -> None:
    assert (await house.http.get(f"/strategist/orders?{query}")).status_code == 422
    assert (await house.http.get("/strategist/orders?limit=500")).status_code == 200


async def test_an_order_is_cancelled_by_our_id_and_by_the_brokers(house: House) -> None:
    desk = house.desk
    order_id = await desk.send()
    other = desk.alpaca.order("IBM", 5)
    answer = await house.delete(order_id)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": str(order_id),
        "broker_id": desk.at_broker(order_id),
        "ticker": "AAPL",
        "status": "canceled",
        "filled_qty": 0,
    }
    assert (await house.delete(other)).json()["status"] == "canceled"
    again = await house.delete(other)
    assert (again.status_code, "it is canceled" in again.json()["detail"]) == (409, True)


async def test_an_exit_whose_name_is_the_brokers_is_found_by_our_record(house: House) -> None:
    desk, order_id = house.desk, uuid4()
    closing = desk.alpaca.order("AAPL", -5)
    await desk.change(
        "insert into orders (id, origin, ticker, side, qty, status, broker_id) "
        "values (:id, 'exit', 'AAPL', 'sell', 5, 'new', :broker_id)",
        id=order_id,
        broker_id=closing,
    )
    answer = await house.delete(order_id)
    assert (answer.status_code, answer.json()["broker_id"]) == (200, closing)


async def test_an_order_that_the_broker_has_not_is_said_so(house: House) -> None:
    order_id = await house.desk.send(arrives=False)
    on_its_way = await house.delete(order_id)
    assert (on_its_way.status_code, "submitting" in on_its_way.json()["detail"]) == (409, True)
    assert (await house.delete(uuid4())).status_code == 404
    assert (await house.delete("no-uuid")).status_code == 404
    assert (await house.delete("a%20b")).status_code == 422


async def test_cancelling_works_with_postgres_down(house: House, postgres: EmbeddedPostgres, database_url: str) -> None:
    order_id = await house.desk.send()
    other = house.desk.alpaca.order("IBM", 5)
    with database_away(postgres, database_url):
        assert (await house.http.get("/strategist/orders")).status_code == 503
        assert (await house.delete(order_id)).status_code == 200
        assert (await house.delete(other)).status_code == 200
        unknown = await house.delete(uuid4())
        assert (unknown.status_code, "our record cannot be read" in unknown.json()["detail"]) == (503, True)
    assert {order["status"] for order in house.desk.alpaca.orders.values()} == {"canceled"}


async def test_a_broker_that_is_away_is_503_and_nothing_is_claimed(house: House) -> None:
    order_id = await house.desk.send()
    house.desk.alpaca.away = True
    answer = await house.delete(order_id)
    assert (answer.status_code, "nothing was cancelled" in answer.json()["detail"]) == (503, True)


async def test_scopes_are_asked(house: House) -> None:
    order_id = await house.desk.send()
    reader = create_key(house.keys, "reader", frozenset({"read"}))
    trader = create_key(house.keys, "trader", frozenset({"trade"}))
    assert (await house.delete(order_id, reader)).status_code == 403
    for route in ("orders", "fills", "positions", "account", "recent"):
        answer = await house.http.get(f"/strategist/{route}", headers={"Authorization": f"Bearer {trader}"})
        assert answer.status_code == 403
        answer = await house.http.get(f"/strategist/{route}", headers={"Authorization": ""})
        assert answer.status_code == 401
    assert (await house.delete(order_id, trader)).status_code == 200
