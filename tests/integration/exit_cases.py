"""What tests of reducing orders share: a broker that holds something, and processes that die."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from libs.trading.intent import intent_id
from libs.trading.journal import Journal
from libs.trading.types import Order
from services.api.strategist.exits.exits import Exits
from services.api.strategist.exits.memory import CLOSING
from services.api.strategist.exits.types import Exit, written
from tests.integration.api_app import until
from tests.integration.desk_cases import an_order
from tests.integration.paper_server import Paper, paper_broker
from tests.integration.test_strategist_orders import held_of

CLOSE = "DELETE /v2/positions/{symbol}"
HELD = Decimal(60)


@dataclass(slots=True)
class Clock:
    """A clock that a test moves on."""

    ahead: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        """Wall time and what was added."""
        return datetime.now(UTC) + self.ahead

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.ahead += timedelta(seconds=seconds)


@asynccontextmanager
async def holding_broker() -> AsyncGenerator[Paper, None]:
    """A broker that holds 60 AAPL for us."""
    async with paper_broker("AAPL") as made, way_to(made) as broker:
        await broker.submit_limit(
            symbol="AAPL", side="buy", qty=HELD, limit_price=Decimal(105), client_order_id="entry"
        )
        await until(lambda: held_of(made), lambda held: held == HELD)
        yield made


def way_to(paper: Paper) -> Broker:
    """A connection to it."""
    return Broker(BrokerAddress("paper", paper.url))


def an_exit(client_order_id: str = "out", **changes: Any) -> Order:
    """A sale of 2 AAPL."""
    fields: dict[str, Any] = {"side": "sell", "qty": Decimal(2), "reduce_only": True}
    return an_order(client_order_id, **fields | changes)


def sold(paper: Paper) -> int:
    """How many closes the broker ever took."""
    return sum(order.side == "sell" for order in paper.orders())


def crashed(state: Path, order: Order, *, ago_s: float) -> None:
    """Leave the journal of a process that was killed between its first line and the broker's answer."""
    begun = Exit(order, uuid4(), datetime.now(UTC) - timedelta(seconds=ago_s))
    Journal(state / "exits.jsonl").append(intent_id(order), CLOSING, written(begun))


async def restarted(broker: Broker, state: Path) -> Exits:
    """A new process on the same disk."""
    exits = Exits(broker, state=state)
    await exits.load()
    return exits


async def journal_of(state: Path) -> list[dict[str, Any]]:
    """The journal's lines."""
    path = state / "exits.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
