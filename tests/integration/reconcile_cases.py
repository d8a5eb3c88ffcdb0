"""A broker that speaks Alpaca's wire from memory, and our record of it in a real database."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.intent import broker_order_id
from services.jobs.reconcile.reconciler import Reconciler

FINAL = {"filled", "canceled", "expired", "rejected"}


@dataclass(frozen=True)
class Held:
    """An answer that waits: `reached` when it was asked for, `go_on` lets it out."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


class FakeAlpaca:
    """Orders, positions and fills in memory. `before` has what happens just before a route's next answer."""

    def __init__(self, number: str = "PA1") -> None:
        self.number = number
        self.orders: dict[str, dict[str, Any]] = {}
        self.positions: dict[str, Decimal] = {}
        self.fills: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.away = False
        self.before: dict[str, Callable[[], object]] = {}
        self.held: dict[str, Held] = {}

    def order(
        self,
        symbol: str = "AAPL",
        qty: int = 10,
        *,
        client: str = "",
        status: str = "new",
        age_s: float = 0,
        type_: str = "limit",
    ) -> str:
        """Have an order; `qty` is negative for a sale. Returns its id."""
        order_id = str(uuid4())
        self.orders[order_id] = {
            "id": order_id,
            "client_order_id": client or f"desk-{order_id[:8]}",
            "symbol": symbol,
            "side": "buy" if qty > 0 else "sell",
            "qty": str(abs(qty)),
            "filled_qty": "0",
            "filled_avg_price": None,
            "limit_price": "100.5",
            "type": type_,
            "status": status,
            "submitted_at": (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(),
        }
        return order_id

    def fill(self, order_id: str, qty: int | None = None, price: str = "100.25", *, age_s: float = 0) -> str:
        """Fill an order, its whole rest where `qty` is left out. Returns the fill's id."""
        order = self.orders[order_id]
        amount = Decimal(order["qty"]) - Decimal(order["filled_qty"]) if qty is None else Decimal(qty)
        order["filled_qty"] = str(Decimal(order["filled_qty"]) + amount)
        order["filled_avg_price"] = price
        order["status"] = "filled" if order["filled_qty"] == order["qty"] else "partially_filled"
        signed = amount if order["side"] == "buy" else -amount
        symbol = order["symbol"].replace("/", "")
        self.positions[symbol] = self.positions.get(symbol, Decimal(0)) + signed
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        fill_id = f"{at:%Y%m%d%H%M%S%f}::{uuid4()}"
        self.fills.append(
            {
                "id": fill_id,
                "order_id": order_id,
                "symbol": order["symbol"],
                "side": order["side"],
                "qty": str(amount),
                "price": price,
                "transaction_time": at.isoformat(),
            }
        )
        return fill_id

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        route = request.url.path.removeprefix("/v2")
        self.calls.append(f"{request.method} {route}")
        if self.away:
            raise httpx.ConnectError("connection refused", request=request)
        if (held := self.held.pop(route, None)) is not None:
            held.reached.set()
            await held.go_on.wait()
        happens = self.before.pop(route, None)
        if happens is not None:
            happens()
        query = dict(request.url.params)
        if request.method == "DELETE":
            return self._cancel(route.rsplit("/", 1)[1])
        if route == "/orders":
            return httpx.Response(200, json=self._page(query))
        if route == "/orders:by_client_order_id":
            return self._one(o for o in self.orders.values() if o["client_order_id"] == query["client_order_id"])
        if route.startswith("/orders/"):
            return self._one(o for o in self.orders.values() if o["id"] == route.rsplit("/", 1)[1])
        return httpx.Response(200, json=self._rest(route, query))

    def _cancel(self, order_id: str) -> httpx.Response:
        order = self.orders.get(order_id)
        if order is None:
            return httpx.Response(404, json={"code": 40410000, "message": "order not found"})
        if order["status"] in FINAL:
            return httpx.Response(422, json={"code": 42210000, "message": f"order is already {order['status']}"})
        order["status"] = "canceled"
        return httpx.Response(204)

    def _one(self, found: Any) -> httpx.Response:
        order = next(iter(found), None)
        if order is None:
            return httpx.Response(404, json={"code": 40410000, "message": "order not found"})
        return httpx.Response(200, json=order)

    def _page(self, query: dict[str, str]) -> list[dict[str, Any]]:
        after = datetime.fromisoformat(query.get("after", "0001-01-01T00:00:00Z"))
        listed = [
            order
            for order in self.orders.values()
            if datetime.fromisoformat(order["submitted_at"]) > after
            and (query["status"] == "all" or order["status"] not in FINAL)
        ]
        return sorted(listed, key=lambda order: order["submitted_at"])[: int(query["limit"])]

    def _rest(self, route: str, query: dict[str, str]) -> Any:
        if route == "/positions":
            return [
                {"symbol": symbol, "qty": str(qty), "avg_entry_price": "100", "current_price": "101.5"}
                for symbol, qty in self.positions.items()
                if qty
            ]
        if route == "/account":
            return {"id": "1", "account_number": self.number, "equity": "100500.5", "last_equity": "100000"}
        if route == "/clock":
            now = datetime.now(UTC).isoformat()
            return {"timestamp": now, "is_open": True, "next_open": now, "next_close": now}
        assert route == "/account/activities/FILL", route
        after = datetime.fromisoformat(query.get("after", "0001-01-01T00:00:00Z"))
        listed = sorted(
            (fill for fill in self.fills if datetime.fromisoformat(fill["transaction_time"]) > after),
            key=lambda fill: fill["id"],
        )
        ids = [fill["id"] for fill in listed]
        start = ids.index(query["page_token"]) + 1 if "page_token" in query else 0
        return listed[start : start + int(query["page_size"])]


class Desk:
    """A reconciler on the fake broker, with the database's rows at hand."""

    def __init__(self, engine: AsyncEngine, alpaca: FakeAlpaca, broker: Broker) -> None:
        self.engine = engine
        self.alpaca = alpaca
        self.broker = broker
        self.reconciler = self.another()

    def another(self) -> Reconciler:
        """One more process's reconciler. It never leaves a round to others for having just reconciled."""
        return Reconciler(self.engine, self.broker, every_s=0)

    async def reconcile(self, times: int = 1) -> Any:
        """Reconcile; what the last time wrote."""
        written = None
        for _ in range(times):
            written = await self.reconciler.step()
            assert written is not None
        return written

    async def send(self, ticker: str = "AAPL", qty: int = 10, *, age_s: float = 0, arrives: bool = True) -> UUID:
        """An entry of ours, on its way; `age_s` ago, and at the broker where it `arrives`. Returns its id."""
        order_id = uuid4()
        await self.change(
            "insert into orders (id, origin, client_order_id, ticker, side, qty, status, created_at, updated_at) "
            "select :id, 'entry', 'mine', :ticker, :side, :qty, 'submitting', at, at "
            "from (select now() - make_interval(secs => :age)) as t(at)",
            id=order_id,
            ticker=ticker,
            side="buy" if qty > 0 else "sell",
            qty=abs(qty),
            age=age_s,
        )
        if arrives:
            self.alpaca.order(ticker, qty, client=broker_order_id(order_id), age_s=age_s)
        return order_id

    def at_broker(self, order_id: UUID) -> str:
        """The broker's id of an order of ours."""
        found = [o["id"] for o in self.alpaca.orders.values() if o["client_order_id"] == broker_order_id(order_id)]
        return found[0]

    async def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """What a query gives."""
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(text(statement), values)).mappings()]

    async def change(self, statement: str, **values: Any) -> None:
        """Change rows behind the reconciler's back."""
        async with self.engine.begin() as connection:
            await connection.execute(text(statement), values)

    async def order(self, order_id: UUID) -> dict[str, Any]:
        """One order's row."""
        (row,) = await self.rows("select * from orders where id = :id", id=order_id)
        return row

    async def positions(self) -> dict[str, tuple[int, int]]:
        """Quantity held and expected, by ticker."""
        found = await self.rows("select ticker, qty, expected_qty from positions order by ticker")
        return {row["ticker"]: (int(row["qty"]), int(row["expected_qty"])) for row in found}

    async def differences(self) -> list[tuple[str, str]]:
        """Kind and subject of each difference on record."""
        found = await self.rows("select kind, subject from differences order by id")
        return [(row["kind"], row["subject"]) for row in found]


ACCOUNT = "paper:PA1"


@asynccontextmanager
async def open_desk(engine: AsyncEngine, alpaca: FakeAlpaca) -> AsyncGenerator[Desk, None]:
    """A desk whose broker is the fake one."""
    address = BrokerAddress(name="paper", base_url="http://broker", key_id="key", secret="s")
    async with Broker(address, transport=httpx.MockTransport(alpaca.handle)) as broker:
        yield Desk(engine, alpaca, broker)
