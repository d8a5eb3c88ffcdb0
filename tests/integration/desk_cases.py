"""What the gate reads, put into a database: a feed with judged forecasts, prices, a reconciled account, switches."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.types import Order

FEED = "replay:1"
ACCOUNT = "paper:http://paper:"
MODEL = "Lexi"
AS_OF = datetime(2012, 5, 4, 20, tzinfo=UTC)


@dataclass
class Judged:
    """One forecast with its judgement, as the forecast loop would have stored it."""

    ticker: str = "AAPL"
    side: str = "buy"
    allow: bool | None = True
    reasons: list[str] = field(default_factory=list[str])
    status: str = "ok"
    error: str | None = None
    rules: list[str] = field(default_factory=list[str])
    age_s: float | None = 1.0
    answered_by: str = MODEL
    horizon: str = "1d"
    price: float = 100.0
    as_of: datetime = AS_OF
    features: dict[str, Any] = field(default_factory=dict[str, Any])
    feed: str = FEED

    def document(self) -> str:
        """`features`."""
        decision = None if self.allow is None else {"allow": self.allow, "reasons": self.reasons, "flags": []}
        policy = {
            "raw": "",
            "decision": decision,
            "status": self.status,
            "error": self.error,
            "model": self.answered_by,
            "prompt_version": "1.0.0",
            "prompt_hash": "h",
            "arm": "",
            "rules": {"allow": not self.rules, "reasons": self.rules},
        }
        inputs = {"signal": {"side": self.side, "last_price": self.price}}
        return json.dumps({"llm": {"v": 1, "policy": policy, "inputs": inputs}, **self.features})


async def store(engine: AsyncEngine, judged: Judged) -> UUID:
    """Store a forecast, its head and its bar; returns its id."""
    forecast_id = uuid4()
    values = {
        "feed": judged.feed,
        "ticker": judged.ticker,
        "horizon": judged.horizon,
        "as_of": judged.as_of,
        "id": forecast_id,
        "price": judged.price,
        "features": judged.document(),
        "age": judged.age_s,
    }
    async with engine.begin() as connection:
        await connection.execute(text("select ensure_partition('forecasts', 'month', :as_of)"), {"as_of": judged.as_of})
        await connection.execute(
            text(
                "insert into feeds (feed, source, last_write_at) values (:feed, 'replay', now())"
                " on conflict (feed) do update set last_write_at = now()"
            ),
            values,
        )
        await connection.execute(
            text(
                """
                insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper,
                  features, judged_at)
                values (:feed, :ticker, :horizon, 'theta', :as_of, :id, :price, :price, :price, :price,
                  cast(:features as jsonb), now() - make_interval(secs => cast(:age as float8)))
                """
            ),
            values,
        )
        await connection.execute(
            text(
                """
                insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
                values (:feed, :ticker, :horizon, 'theta', :as_of, :id)
                on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
                """
            ),
            values,
        )
        await connection.execute(
            text(
                """
                insert into bars (feed, ticker, as_of, open, high, low, close, volume)
                values (:feed, :ticker, :as_of, :price, :price, :price, :price, 1)
                on conflict (feed, ticker, as_of) do update set close = excluded.close, delivered_at = now()
                """
            ),
            values,
        )
    return forecast_id


async def reconciled(engine: AsyncEngine, *, account: str = ACCOUNT, **positions: Decimal) -> None:
    """The broker as just read, with these positions at a price of 100."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """
                insert into broker_state (account, equity, last_equity, market_open, reconciled_at)
                values (:account, 100000, 100000, true, now())
                on conflict (one) do update set account = excluded.account, reconciled_at = now()
                """
            ),
            {"account": account},
        )
        for ticker, qty in positions.items():
            await connection.execute(
                text(
                    "insert into positions values (:ticker, :qty, 100, 100, :qty, now())"
                    " on conflict (ticker) do update set qty = excluded.qty"
                ),
                {"ticker": ticker, "qty": qty},
            )


async def turn(engine: AsyncEngine, name: str, value: bool, *, seconds: float | None = None) -> None:
    """Turn a switch, for some seconds or for good."""
    ends = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    async with engine.begin() as connection:
        await connection.execute(
            text("insert into switches (name, value, set_by, reason, expires_at) values (:n, :v, 'test', 'test', :e)"),
            {"n": name, "v": value, "e": ends},
        )


def an_order(client_order_id: str = "c1", **changes: Any) -> Order:
    """A small buy of AAPL at its price."""
    fields: dict[str, Any] = {
        "ticker": "AAPL",
        "side": "buy",
        "qty": Decimal(1),
        "ref_price": Decimal(100),
        "client_order_id": client_order_id,
        "key_name": "desk-1",
    }
    return Order(**fields | changes)
