"""The api as a process of its own, between a broker on a socket and a database, for orders that meet trouble."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import httpx
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import ALL_SCOPES
from tests.faults.gateway_process import Gateway, caller, eventually, gateway_before, token
from tests.integration.desk_cases import AS_OF, Judged, reconciled, store, turn
from tests.integration.paper_server import Paper, paper_broker
from tools.local_stack.postgres import EmbeddedPostgres

_numbers = count()


@dataclass(frozen=True, slots=True)
class Trading:
    """The api, its broker and its database."""

    api: Gateway
    paper: Paper
    engine: AsyncEngine

    async def order(self, *, path: str = "orders", within_s: float = 30, **changes: Any) -> httpx.Response:
        """An entry that the gate allows, with changes, under an id of its own."""
        body: dict[str, Any] = {
            "ticker": "AAPL",
            "side": "buy",
            "qty": "10",
            "ref_price": "100",
            "client_order_id": f"order-{next(_numbers)}",
        }
        return await self.post(path, body | changes, within_s=within_s)

    async def exit(self, qty: str, *, side: str = "sell", **changes: Any) -> httpx.Response:
        """An order that makes the position smaller."""
        return await self.order(side=side, qty=qty, reduce_only=True, **changes)

    async def post(self, path: str, body: dict[str, Any], *, within_s: float = 30) -> httpx.Response:
        """A call of a strategy."""
        headers = {"Authorization": f"Bearer {token('desk')}"}
        url = f"{self.api.url}/strategist/{path}"
        return await self.api.http.post(url, json=body, headers=headers, timeout=within_s)

    async def fresh(self, ticker: str = "AAPL") -> None:
        """A new forecast that allows a buy, and an account that was just read."""
        await store(self.engine, Judged(ticker=ticker, as_of=AS_OF + timedelta(hours=next(_numbers))))
        await reconciled(self.engine, account=await self.paper.identity())

    def sent(self) -> int:
        """How many orders of the house the broker has."""
        return sum(order.client_order_id.startswith("lexi-") for order in self.paper.orders())

    async def until_held(self, symbol: str = "AAPL") -> None:
        """Wait until something is held."""

        async def look() -> bool:
            return bool(self.paper.held(symbol))

        await eventually(look, what=f"a position in {symbol}")


@asynccontextmanager
async def trading(postgres: EmbeddedPostgres) -> AsyncGenerator[Trading]:
    """A house that trades in enforce, with a good forecast of AAPL."""
    callers = [caller("desk", scopes=set(ALL_SCOPES))]
    async with (
        paper_broker() as paper,
        gateway_before(postgres, [], callers, BROKER="paper", PAPER_URL=paper.url) as api,
    ):
        engine = create_engine(
            DatabaseSettings(database_url=SecretStr(postgres.url(api.database))), application="test", pool_size=1
        )
        try:
            house = Trading(api, paper, engine)
            await turn(engine, "LLM_SHADOW_MODE", False)
            await house.fresh()
            yield house
        finally:
            await engine.dispose()
