"""What one reconciliation changes in our record, statement by statement, inside its caller's transaction."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.alerts import raise_alert
from libs.trading.broker.types import BrokerOrder
from libs.trading.intent import BROKER_PREFIX
from services.jobs.reconcile import statements as sql
from services.jobs.reconcile.differences import (
    ZERO,
    Difference,
    Fill,
    Kind,
    Settled,
    adopt,
    compare_positions,
    late_order,
    missing_order,
    sort_out,
    unknown_order,
)
from services.jobs.reconcile.exits import MARKET, ExitClaims
from services.jobs.reconcile.reading import SUBMITTING, Ground, Pending, Reading

NAMED_IN_ALERT = 5
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Written:
    """What a reconciliation changed. `confirmed` are the differences that were named and adopted."""

    account: str
    first: bool
    orders: int
    fills: int
    positions: int
    not_sent: int
    confirmed: tuple[Difference, ...]
    suspected: tuple[Difference, ...]


class Update:
    """One transaction's work. An account read for the first time is taken as it is found, without differences."""

    def __init__(self, connection: AsyncConnection, ground: Ground, reading: Reading) -> None:
        self._connection = connection
        self._ground = ground
        self._reading = reading
        self._exits = ExitClaims(connection)
        self._late: list[Difference] = []

    async def run(self) -> Written:
        """Orders, then fills, then positions, then what differed."""
        reading, ground = self._reading, self._ground
        changed, strangers = await self._update_orders()
        orders = sort_out(self._odd_orders(strangers), ground.suspected)
        await self._settle_orders(orders.confirmed, strangers)
        not_sent = await self._not_sent(reading.never_came)
        fills = await self._store_fills()
        found, differing = await self._compare(fills)
        positions = sort_out(differing, ground.suspected)
        kept = adopt(found, {each.subject for each in positions.confirmed})
        await self._store_positions(kept)
        confirmed = (*self._other_account(), *self._late, *orders.confirmed, *positions.confirmed)
        suspected = (*orders.suspected, *positions.suspected)
        await self._store_state(suspected)
        await self._name(confirmed)
        return Written(
            account=reading.account,
            first=reading.first,
            orders=changed,
            fills=len(fills),
            positions=len(kept),
            not_sent=not_sent,
            confirmed=confirmed,
            suspected=suspected,
        )

    async def _rows(self, statement: TextClause, rows: Iterable[Mapping[str, Any]], **values: Any) -> Any:
        document = json.dumps(list(rows), default=str)
        return await self._connection.execute(statement, {"rows": document, **values})

    async def _update_orders(self) -> tuple[int, list[BrokerOrder]]:
        """Bring the orders we know up to date; returns how many changed, and the orders that nobody here sent."""
        orders = self._reading.orders
        await self._connection.execute(sql.CLAIM_PANIC)
        if any(each.origin == "exit" and each.status == SUBMITTING for each in self._ground.pending):
            await self._exits.take_back()
        if not orders:
            return 0, []
        asked = [{"id": own_id(order), "broker_id": order.id} for order in orders.values()]
        known: dict[str, Any] = {row.broker_id: row for row in await self._rows(sql.KNOWN, asked)}
        rows = [row_of(orders[broker_id]) | {"id": row.id, "late": row.late} for broker_id, row in known.items()]
        changed = {row.id for row in await self._rows(sql.UPDATE_ORDERS, rows, begun=self._ground.begun)}
        late = ((orders[broker_id], row.id) for broker_id, row in known.items() if row.late and row.id in changed)
        self._late = [
            late_order(order, str(order_id), self._ground.begun) for order, order_id in late if order.status != REJECTED
        ]
        strangers = [order for order in orders.values() if order.id not in known]
        return len(changed), await self._without_own(strangers)

    async def _without_own(self, strangers: list[BrokerOrder]) -> list[BrokerOrder]:
        """Record the orders that a panic exit sent, exits that got no answer, and those of an account just met.

        Returns the others.
        """
        if not strangers:
            return []
        ids = [order.id for order in strangers]
        of_panic = set(await self._connection.scalars(sql.PANIC_ORDERS, {"broker_ids": ids}))
        await self._insert_orders((order for order in strangers if order.id in of_panic), origin="panic")
        others = await self._without_exits([order for order in strangers if order.id not in of_panic])
        if not self._reading.first:
            return others
        await self._insert_orders((order for order in others if order.open), origin="broker")
        return []

    async def _without_exits(self, strangers: list[BrokerOrder]) -> list[BrokerOrder]:
        seen = {each.subject for each in self._ground.suspected if each.kind is Kind.UNKNOWN_ORDER}
        claimed = await self._exits.claim(strangers, seen_before=seen)
        return [order for order in strangers if order.id not in claimed]

    async def _insert_orders(self, orders: Iterable[BrokerOrder], *, origin: str) -> None:
        reason = "" if origin == "panic" else "found at the broker"
        rows = [row_of(order) | {"id": id_of(order), "origin": origin, "reason": reason} for order in orders]
        if rows:
            await self._rows(sql.INSERT_ORDERS, rows)

    def _odd_orders(self, strangers: Iterable[BrokerOrder]) -> list[Difference]:
        ground = self._ground
        missing = [missing_order(str(each.id), each.ticker, ground.begun) for each in self._reading.gone]
        return [*missing, *(unknown_order(order, ground.fills_from) for order in strangers)]

    async def _settle_orders(self, confirmed: Iterable[Difference], strangers: Iterable[BrokerOrder]) -> None:
        """Take the broker's word: unknown orders are recorded, denied ones end."""
        subjects = {(each.kind, each.subject) for each in confirmed}
        unknown = (order for order in strangers if (Kind.UNKNOWN_ORDER, order.id) in subjects)
        await self._insert_orders(unknown, origin="broker")
        missing = [UUID(subject) for kind, subject in subjects if kind is Kind.MISSING_ORDER]
        if missing:
            await self._connection.execute(sql.GIVE_UP_MISSING, {"ids": missing, "begun": self._ground.begun})

    async def _not_sent(self, never_came: Sequence[Pending]) -> int:
        if not never_came:
            return 0
        values = {"ids": [each.id for each in never_came], "begun": self._ground.begun}
        return (await self._connection.execute(sql.NOT_SENT, values)).rowcount

    async def _store_fills(self) -> list[Fill]:
        """Store the fills that are new, of known orders; returns them, each once for ever."""
        if not self._reading.fills:
            return []
        rows = [
            {
                "id": fill.id,
                "broker_id": fill.order_id,
                "ticker": fill.symbol,
                "side": fill.side,
                "qty": fill.qty,
                "price": fill.price,
                "at": fill.at.isoformat(),
            }
            for fill in self._reading.fills
        ]
        stored = await self._rows(sql.INSERT_FILLS, rows, all=self._reading.first)
        names = self._reading.names
        return [
            Fill(names.get(row.ticker, row.ticker), row.qty if row.side == "buy" else -row.qty, row.at)
            for row in stored
        ]

    async def _compare(self, fills: Sequence[Fill]) -> tuple[list[Settled], list[Difference]]:
        actual = self._reading.positions
        if self._reading.first:  # what was before us explains what is there
            expected = {ticker: position.qty for ticker, position in actual.items()}
            return compare_positions(actual, expected, (), self._ground.begun)
        expected: dict[str, Decimal] = {}
        for row in await self._connection.execute(sql.EXPECTED):  # what was stored under another spelling moves over
            ticker = self._reading.names.get(row.ticker, row.ticker)
            expected[ticker] = expected.get(ticker, ZERO) + row.expected_qty
        return compare_positions(actual, expected, fills, self._ground.begun)

    async def _store_positions(self, positions: Collection[Settled]) -> None:
        rows = [asdict(each) for each in positions]
        await self._rows(sql.UPSERT_POSITIONS, rows, begun=self._ground.begun)
        await self._connection.execute(sql.DROP_POSITIONS, {"tickers": [each.ticker for each in positions]})

    async def _store_state(self, suspected: Iterable[Difference]) -> None:
        reading = self._reading
        values = {
            "account": reading.account,
            "equity": reading.equity,
            "last_equity": reading.last_equity,
            "market_open": reading.market_open,
            "suspected": json.dumps([each.as_json() for each in suspected]),
            "begun": self._ground.begun,
        }
        await self._connection.execute(sql.UPSERT_STATE, values)

    def _other_account(self) -> list[Difference]:
        """Another account than before is news at once."""
        before, now = self._ground.account, self._reading.account
        if before is None or before == now:
            return []
        detail = f"the broker's account was {before} and is {now}; its positions are taken as they are"
        return [Difference(Kind.ACCOUNT_CHANGED, now, detail, self._ground.begun)]

    async def _name(self, confirmed: Sequence[Difference]) -> None:
        """Put differences on record, and have the desk told: one alert for all of them that are news."""
        if not confirmed:
            return
        stored = await self._rows(sql.INSERT_DIFFERENCES, [each.as_json() for each in confirmed])
        new: dict[tuple[str, str, str], int] = {(row.kind, row.subject, row.detail): row.id for row in stored}
        news = [each for each in confirmed if (each.kind.value, each.subject, each.detail) in new]
        if news:
            key = f"reconciliation:{min(new.values())}"
            await raise_alert(self._connection, key=key, kind="reconciliation", text=told(news))


def told(confirmed: Sequence[Difference]) -> str:
    """The alert's words: each difference, the first few of many."""
    named = "; ".join(f"{each.kind}: {each.detail}" for each in confirmed[:NAMED_IN_ALERT])
    more = len(confirmed) - NAMED_IN_ALERT
    return f"{named}; and {more} more" if more > 0 else named


def own_id(order: BrokerOrder) -> UUID | None:
    """Our id of an order that we sent, None for anybody else's."""
    if not order.client_order_id.startswith(BROKER_PREFIX):
        return None
    try:
        return UUID(hex=order.client_order_id.removeprefix(BROKER_PREFIX))
    except ValueError:
        return None


def id_of(order: BrokerOrder) -> UUID:
    """The id a found order is recorded under: ours, else the broker's own where that is a UUID, else one made of it."""
    own = own_id(order)
    if own is not None:
        return own
    try:
        return UUID(order.id)
    except ValueError:
        return uuid5(NAMESPACE_URL, f"broker-order:{order.id}")


def row_of(order: BrokerOrder) -> dict[str, Any]:
    """An order as the columns that come from the broker.

    One by amount of money has no quantity, and then what it filled is one; one at the market has no limit.
    """
    market = order.type == MARKET
    return {
        "broker_id": order.id,
        "client_order_id": order.client_order_id,
        "ticker": order.symbol,
        "side": order.side,
        "qty": max(order.qty, order.filled_qty),
        "limit_price": None if market else order.limit_price,
        "market": market,
        "status": order.status,
        "filled_qty": order.filled_qty,
        "filled_avg_price": order.filled_avg_price,
        "created_at": order.submitted_at.isoformat(),
    }
