"""What must hold after every step, whatever happened: looked up in Postgres and in the broker's own books."""

import json
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.trading.chain import GENESIS, link
from libs.trading.intent import BROKER_PREFIX
from services.paper.exchange import Exchange
from services.paper.types import Order as PaperOrder
from tests.simulation.market import Market, Signal
from tests.simulation.wire import Sent, Wires

OLDEST_DECISION_S = 900 + 30
"""The decision's time to live, and what a step may take."""

VERDICTS = text("select * from gate_verdicts where seq > :seq order by seq")
TWICE = text("select forecast_id from authorisations where forecast_id is not null group by 1 having count(*) > 1")
BASELESS = text(
    """
    select a.client_order_id from authorisations a left join gate_verdicts v on v.id = a.verdict_id
    where v.id is null or v.verdict <> 'allow' or v.reduce_only or v.client_order_id <> a.client_order_id
    """
)
ENTRY = text(
    """
    select o.ticker, o.side, o.qty, o.limit_price, o.origin, a.client_order_id as authorised, v.verdict
    from orders o
    left join authorisations a on a.client_order_id = o.client_order_id
    left join gate_verdicts v on v.id = o.verdict_id
    where o.id = :id
    """
)
REPEATED = (
    "verdict",
    "would_have",
    "mode",
    "reasons",
    "client_order_id",
    "ticker",
    "side",
    "key_name",
    "intent",
    "reduce_only",
)


class Violation(AssertionError):
    """An invariant does not hold."""


def must(holds: object, what: str) -> None:
    """Raise a `Violation` unless it holds."""
    if not holds:
        raise Violation(what)


@dataclass(slots=True)
class Watch:
    """Everything that was looked at already, and what may come from outside the house."""

    exchange: Exchange
    wires: Wires
    market: Market
    seq: int = 0
    hash: str = GENESIS
    orders: int = 0
    fills: int = 0
    calls: int = 0
    positions: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    posted: Counter[str] = field(default_factory=Counter[str])
    exits: list[tuple[str, Decimal]] = field(default_factory=list[tuple[str, Decimal]])
    bound: dict[UUID, str] = field(default_factory=dict[UUID, str])
    strangers: set[str] = field(default_factory=set[str])
    returning: bool = False
    stood: bool = False
    rearmed: bool = False
    quiet_since: int | None = None
    """How many orders the broker had when an exit ended flat; None once a person re-armed."""

    async def check(self, engine: AsyncEngine, now: float) -> None:
        """Look at everything that is new since the last time. Raises `Violation`."""
        async with engine.connect() as connection:
            await self._check_chain(connection, now)
            must(not (await connection.execute(TWICE)).all(), "a forecast authorised more than one entry")
            must(not (await connection.execute(BASELESS)).all(), "an authorisation rests on no verdict that allows")
            await self._check_orders(connection)
        self._check_calls()
        self._check_fills()
        stands = self.wires.halted()
        must(stands or self.rearmed or not self.stood, "the halt file is gone, and nobody re-armed")
        self.stood, self.rearmed = stands, False

    def note_rearmed(self) -> None:
        """A person re-armed: entries may pass again."""
        self.quiet_since, self.rearmed = None, True

    async def _check_chain(self, connection: AsyncConnection, now: float) -> None:
        for row in (await connection.execute(VERDICTS, {"seq": self.seq})).mappings():
            must(row["seq"] == self.seq + 1, f"the chain has a hole before verdict {row['seq']}")
            must(row["hash"] == link(self.hash, row["payload"]), f"the chain is broken at verdict {row['seq']}")
            said = json.loads(row["payload"])
            for name in REPEATED:
                must(said[name] == row[name], f"verdict {row['seq']} says another {name} in its payload")
            self.seq, self.hash = row["seq"], row["hash"]
            self._check_verdict(dict(row), now)

    def _check_verdict(self, row: dict[str, Any], now: float) -> None:
        """An entry that passed in enforce rests on a decision that was good, about it, and young."""
        if row["verdict"] != "allow" or row["reduce_only"] or row["mode"] != "enforce":
            return
        name = f"verdict {row['seq']} allowed {row['side']} {row['ticker']} in enforce"
        must(row["forecast_id"] is not None, f"{name} without a forecast")
        signal = self.market.signals.get(UUID(str(row["forecast_id"])))
        must(signal is not None, f"{name} by a forecast that nobody made")
        assert isinstance(signal, Signal)
        must(signal.opinion == "allow", f"{name} by a decision that was {signal.opinion}")
        must((signal.ticker, signal.side) == (row["ticker"], row["side"]), f"{name} by a signal about something else")
        bound = self.bound.setdefault(signal.id, row["client_order_id"])
        must(bound == row["client_order_id"], f"{name} for {row['client_order_id']} by a forecast that let {bound} in")
        must(now - signal.judged <= OLDEST_DECISION_S, f"{name} by a decision judged {now - signal.judged:.0f} s ago")

    async def _check_orders(self, connection: AsyncConnection) -> None:
        """No order at the broker without authority."""
        orders = list(self.exchange.book.orders.values())
        for order in orders[self.orders :]:
            if order.client_order_id.startswith(BROKER_PREFIX):
                await self._check_entry(connection, order)
            else:
                known = order.closing or order.client_order_id in self.strangers or self.returning
                must(known, f"the broker has {order.side} {order.qty} {order.symbol} that nobody may have sent")
        self.orders = len(orders)

    async def _check_entry(self, connection: AsyncConnection, order: PaperOrder) -> None:
        name = f"the entry {order.side} {order.qty} {order.symbol} at the broker"
        must(self.quiet_since is None or order.seq <= self.quiet_since, f"{name} came after an exit was called FLAT")
        found = UUID(hex=order.client_order_id.removeprefix(BROKER_PREFIX))
        row = (await connection.execute(ENTRY, {"id": found})).mappings().one_or_none()
        must(row is not None, f"{name} has no row")
        assert row is not None
        must(row["origin"] == "entry" and row["verdict"] == "allow", f"{name} was not allowed")
        must(row["authorised"] is not None, f"{name} has no authorisation")
        asked = (row["ticker"], row["side"], row["qty"], row["limit_price"])
        must(asked == (order.symbol, order.side, order.qty, order.limit_price), f"{name} was authorised as {asked}")

    def _check_calls(self) -> None:
        """No entry sent while halted, none sent twice, none sent by an exit."""
        for call in self.wires.calls[self.calls :]:
            if not call.is_entry:
                continue
            client_id = str(call.body["client_order_id"])
            self.posted[client_id] += 1
            must(call.who == "api", f"{call.who} sent an entry")
            must(not call.halted, f"the entry {client_id} was sent while the halt stood")
            must(self.posted[client_id] == 1, f"the entry {client_id} was sent twice")
        self.calls = len(self.wires.calls)
        closes = Counter((call.path, call.qty) for call in self.wires.calls if api_close(call))
        asked = Counter((f"/v2/positions/{ticker}", qty) for ticker, qty in self.exits)
        must(closes <= asked, f"the broker closed {closes - asked} more than was asked for")

    def _check_fills(self) -> None:
        """An exit makes a position smaller and never turns it round."""
        for fill in self.exchange.book.fills[self.fills :]:
            order = self.exchange.book.orders[fill.order_id]
            before = self.positions.get(fill.symbol, Decimal(0))
            after = before + (fill.qty if fill.side == "buy" else -fill.qty)
            self.positions[fill.symbol] = after
            if order.closing:
                fits = abs(after) < abs(before) and before * after >= 0
                must(fits, f"an exit moved {fill.symbol} from {before} to {after}")
        self.fills = len(self.exchange.book.fills)
        held = {symbol: position.qty for symbol, position in self.exchange.ledger.positions.items()}
        must(
            held == {symbol: qty for symbol, qty in self.positions.items() if qty}, "positions are not what fills make"
        )

    def check_exit(self, answer: dict[str, Any], *, calm: bool) -> None:
        """The answer of an exit against the broker's books at that moment. `calm`: nothing was in its way."""
        state = answer["state"]
        held, open_orders = dict(self.exchange.ledger.positions), self.exchange.book.open_orders()
        flat = not held and not open_orders
        must(answer["ok"] == (state == "FLAT"), f"{state} is said to be ok={answer['ok']}")
        must(state in {"FLAT", "PENDING_MARKET_OPEN", "PARTIAL", "FAILED"}, f"an exit ended {state}")
        must(flat or state != "FLAT", f"called FLAT with {held} held and {len(open_orders)} orders open")
        must(state == "FLAT" or not calm, f"an exit that nothing was in the way of ended {state}: {answer['failures']}")
        if state == "PENDING_MARKET_OPEN":
            must(not self.exchange.market_open, "called PENDING_MARKET_OPEN while the market is open")
            must(all(order.closing for order in open_orders), "called PENDING_MARKET_OPEN with other orders open")
        if state in {"PARTIAL", "FAILED"}:
            must(answer["failures"], f"{state} without a word why")
        if state == "FLAT":
            self.quiet_since = len(self.exchange.book.orders)


def api_close(call: Sent) -> bool:
    """Whether the api closed a position, or part of one, and the broker did it."""
    return call.who == "api" and call.is_close and call.came_through
