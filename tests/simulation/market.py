"""What the house knows of the market: bars and judged forecasts, stored as the forecast loop stores them."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

MODEL = "Lexi"
FEED = "replay:1"
HORIZON = "1d"
TICKERS = {"AAA": 100.0, "BBB": 40.0, "CCC": 12.5}
FIRST = datetime(2012, 1, 2, 21, tzinfo=UTC)

Opinion: TypeAlias = Literal["allow", "deny", "rule", "invalid", "unavailable", "pending", "fallback", "contradicts"]
OPINIONS: tuple[Opinion, ...] = ("deny", "rule", "invalid", "unavailable", "pending", "fallback", "contradicts")

HALF_GOOD: tuple[Opinion, ...] = ("allow", "allow", "allow", "allow", "allow", "allow", "allow", *OPINIONS)

BEGIN = text("insert into feeds (feed, source, last_write_at) values (:feed, 'replay', now())")
PARTITION = text("select ensure_partition('forecasts', 'month', :as_of)")
BAR = text(
    """
    insert into bars (feed, ticker, as_of, open, high, low, close, volume)
    values (:feed, :ticker, :as_of, :price, :price, :price, :price, 1e6)
    """
)
FORECAST = text(
    """
    insert into forecasts (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, judged_at)
    values (:feed, :ticker, :horizon, 'theta', :as_of, gen_random_uuid(), :price, :price, :price, :price,
      cast(:features as jsonb), case when :judged then now() end)
    returning id
    """
)
HEAD = text(
    """
    insert into forecast_heads (feed, ticker, horizon, model, as_of, id)
    values (:feed, :ticker, :horizon, 'theta', :as_of, :id)
    on conflict (feed, ticker, horizon, model) do update set as_of = excluded.as_of, id = excluded.id
    """
)
AGAIN = text("update forecasts set judged_at = now() where id = :id and as_of = :as_of and judged_at is not null")
CONFIRM = text("update bars set delivered_at = now() where as_of = :as_of")
TOUCH = text("update feeds set last_write_at = now(), last_as_of = :as_of where feed = :feed")


@dataclass(frozen=True, slots=True)
class Signal:
    """The truth about a forecast. `judged` is when it was last judged, by the simulation's clock in seconds."""

    id: UUID
    ticker: str
    side: str
    opinion: Opinion
    judged: float


def policy_of(opinion: Opinion) -> dict[str, Any]:
    """The policy block of `features.llm` for an opinion."""
    good: dict[str, Any] = {
        "raw": "{}",
        "status": "ok",
        "model": MODEL,
        "prompt_version": "1.0.0",
        "arm": "1.0.0",
        "error": None,
        "decision": {"allow": True, "reasons": [], "flags": []},
        "rules": {"allow": True, "reasons": []},
    }
    changes: dict[Opinion, dict[str, Any]] = {
        "allow": {},
        "deny": {"decision": {"allow": False, "reasons": ["earnings"], "flags": []}},
        "contradicts": {"decision": {"allow": True, "reasons": ["earnings"], "flags": []}},
        "rule": {"rules": {"allow": False, "reasons": ["COVERAGE"]}},
        "invalid": {"status": "invalid", "decision": None},
        "unavailable": {"status": "unavailable", "decision": None, "error": "timeout"},
        "pending": {"status": "skipped", "decision": None, "error": "pending"},
        "fallback": {"model": "Hermes"},
    }
    return good | changes[opinion]


class Market:
    """Prices that walk, and a forecast for each ticker at each tick."""

    def __init__(self, engine: AsyncEngine, random: Random) -> None:
        self._engine = engine
        self._random = random
        self.as_of = FIRST
        self.prices = dict(TICKERS)
        self.latest: dict[str, Signal] = {}
        self.signals: dict[UUID, Signal] = {}

    async def begin(self) -> None:
        """The run of the feed."""
        async with self._engine.begin() as connection:
            await connection.execute(BEGIN, {"feed": FEED})

    async def tick(self, now: float, *, opinions: tuple[Opinion, ...] = ()) -> None:
        """A new bar and a judged forecast for each ticker; half of them good where nothing else is asked for."""
        self.as_of += timedelta(days=1)
        async with self._engine.begin() as connection:
            await connection.execute(PARTITION, {"as_of": self.as_of})
            for ticker in TICKERS:
                self.prices[ticker] = round(self.prices[ticker] * self._random.uniform(0.97, 1.03), 2)
                side = self._random.choice(["buy", "buy", "sell", "none"]) if not opinions else "buy"
                opinion = self._random.choice(opinions or HALF_GOOD)
                llm = {"v": 1, "policy": policy_of(opinion), "inputs": {"signal": {"side": side}}}
                values = {"feed": FEED, "ticker": ticker, "horizon": HORIZON, "as_of": self.as_of}
                price = {"price": self.prices[ticker]}
                await connection.execute(BAR, {"feed": FEED, "ticker": ticker, "as_of": self.as_of} | price)
                given = {"features": json.dumps({"llm": llm}), "judged": opinion != "pending"}
                found: UUID = await connection.scalar(FORECAST, values | price | given)
                await connection.execute(HEAD, values | {"id": found})
                self._remember(Signal(UUID(str(found)), ticker, side, opinion, now))
            await connection.execute(TOUCH, {"feed": FEED, "as_of": self.as_of})

    async def judge_again(self, now: float) -> None:
        """The newest forecasts are judged again, with the same outcome, and the feed confirms its prices."""
        async with self._engine.begin() as connection:
            await connection.execute(CONFIRM, {"as_of": self.as_of})
            for signal in self.latest.values():
                await connection.execute(AGAIN, {"id": signal.id, "as_of": self.as_of})
                self._remember(replace(signal, judged=now))

    def _remember(self, signal: Signal) -> None:
        self.latest[signal.ticker] = self.signals[signal.id] = signal
