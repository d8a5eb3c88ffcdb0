"""A paper broker in memory, on a clock that only moves when told."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from services.paper.app import PaperKeys, Store, create_app
from services.paper.exchange import Exchange, Manners, new_exchange
from services.paper.faults import FAULT, Fault
from services.paper.hours import Hours
from services.paper.memory import PaperTransport
from services.paper.types import NewOrder, Order, Side

ACCOUNT = "6f1c5f0e-59f5-4a2c-9a0a-7d8d0e7d3f11"
START = datetime(2024, 3, 5, 15, tzinfo=UTC)
CASH = Decimal(1_000_000)
MARKS = {"AAPL": Decimal(100), "MSFT": Decimal("250.5"), "BTC/USD": Decimal("60000.123")}


def made(
    *, fill_ms: float = 50, slices: int = 1, hours: Hours | None = None, marks: Mapping[str, Decimal] = MARKS
) -> Exchange:
    exchange = new_exchange(ACCOUNT, CASH, now=START, manners=Manners(fill_ms, slices), hours=hours)
    for symbol, price in marks.items():
        exchange.ledger.set_mark(symbol, price)
    exchange.advance(START)
    return exchange


def fault(**fields: Any) -> Fault:
    return FAULT.validate_python(fields)


def order(exchange: Exchange, side: Side, qty: int | str, *, symbol: str = "AAPL", limit: int | None = None) -> Order:
    return exchange.submit(
        NewOrder(
            symbol,
            side,
            Decimal(qty),
            type="market" if limit is None else "limit",
            limit_price=None if limit is None else Decimal(limit),
        )
    )


def after(exchange: Exchange, ms: float) -> None:
    exchange.advance(exchange.now + timedelta(milliseconds=ms))


def bought(exchange: Exchange, qty: int | str, *, symbol: str = "AAPL") -> None:
    order(exchange, "buy", qty, symbol=symbol)
    after(exchange, 1000)


class Broker:
    """The app, a client for it, and its clock."""

    def __init__(self, exchange: Exchange, *, store: Store | None = None, keys: PaperKeys | None = None) -> None:
        self.exchange = exchange
        self.now = exchange.now
        self.slept: list[float] = []
        self.app = create_app(exchange, store, clock=lambda: self.now, sleep=self.sleep, keys=keys)
        self.http = httpx.AsyncClient(transport=PaperTransport(self.app), base_url="http://paper")

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)

    def wait(self, ms: float) -> None:
        self.now += timedelta(milliseconds=ms)

    async def buy(self, qty: int | str, *, symbol: str = "AAPL", limit: int | None = None) -> httpx.Response:
        return await self.post("buy", qty, symbol=symbol, limit=limit)

    async def post(
        self, side: Side, qty: int | str, *, symbol: str = "AAPL", limit: int | None = None
    ) -> httpx.Response:
        lasting = "gtc" if "/" in symbol else "day"
        body = {"symbol": symbol, "side": side, "qty": str(qty), "type": "market", "time_in_force": lasting}
        body |= {} if limit is None else {"type": "limit", "limit_price": str(limit)}
        return await self.http.post("/v2/orders", json=body)

    async def hold(self, qty: int | str, *, symbol: str = "AAPL") -> None:
        """Buy and wait until it is held."""
        assert (await self.buy(qty, symbol=symbol)).status_code == 200
        self.wait(1000)
        assert (await self.http.get(f"/v2/positions/{symbol.replace('/', '')}")).json()["qty"] == str(qty)

    async def strike(self, **fields: Any) -> int:
        """Make a fault stand."""
        answer = await self.http.post("/paper/faults", json=fields)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]
