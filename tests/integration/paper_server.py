"""The paper broker on a socket, inside the test's own loop."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
from pydantic import TypeAdapter

from libs.process import serve
from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from services.paper.app import create_app
from services.paper.exchange import Exchange, Manners, new_exchange
from services.paper.faults import FAULT
from tests.acceptance.stack import free_ports

SETTLE_EVERY_S = 0.01
PRICE = Decimal(100)
ACCOUNT = "6f1c5f0e-59f5-4a2c-9a0a-7d8d0e7d3f11"


@dataclass(frozen=True, slots=True)
class Paper:
    """A broker that answers at `url`; `exchange` is its inside."""

    url: str
    exchange: Exchange

    def fault(self, **fields: Any) -> None:
        """Let something go wrong."""
        adapter: TypeAdapter[Any] = FAULT
        self.exchange.faults.add(adapter.validate_python(fields), datetime.now(UTC))

    async def identity(self) -> str:
        """The account as our services know it."""
        async with Broker(BrokerAddress("paper", self.url)) as broker:
            return await broker.identity()

    def orders(self) -> list[Any]:
        """Every order it ever took."""
        return list(self.exchange.book.orders.values())

    def held(self, symbol: str) -> Decimal:
        """A position, signed."""
        return self.exchange.ledger.held(symbol)


@asynccontextmanager
async def paper_broker(*symbols: str, fill_ms: float = 5) -> AsyncGenerator[Paper, None]:
    """A paper broker with these symbols at a price of 100."""
    now = datetime.now(UTC)
    exchange = new_exchange(
        "6f1c5f0e-59f5-4a2c-9a0a-7d8d0e7d3f11", Decimal(1_000_000), now=now, manners=Manners(fill_ms)
    )
    for symbol in symbols or ("AAPL", "MSFT"):
        exchange.ledger.set_mark(symbol, PRICE)
    app, stop = create_app(exchange), asyncio.Event()
    port = int(free_ports(("PAPER_PORT",))["PAPER_PORT"])

    async def settle() -> None:
        while not stop.is_set():
            app.state.desk.settle()
            await asyncio.sleep(SETTLE_EVERY_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(app, host="127.0.0.1", port=port, stop=stop))
        tasks.create_task(settle())
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url) as http:
            while True:
                try:
                    await http.get("/health")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
        try:
            yield Paper(url, exchange)
        finally:
            stop.set()
