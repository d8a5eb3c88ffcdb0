"""Reading the broker: orders first, then positions, account and clock, fills last.

In this order an order that fills meanwhile is counted twice, as open and as held, and never not at all: limits that
rest on it can only be too tight. Calls whose order does not matter go out side by side: a reading is as old as its
beginning, and a broker that takes seconds for each call must not make it too old for the gate.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeVar
from uuid import UUID

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused
from libs.trading.broker.types import Account, BrokerOrder, BrokerPosition, Fill, MarketClock
from libs.trading.intent import broker_order_id
from services.jobs.reconcile.differences import Difference, Kind

T = TypeVar("T")

NOT_FOUND = 404
SUBMITTING = "submitting"
SUBMITTING_FOR_S = 60.0
"""How long an order may be on its way before the broker is asked whether it ever came."""
MARGIN = timedelta(minutes=1)
"""How far the broker's clock and ours may lie apart, and how late an order may show in a list."""
ASKED_SINGLY = 3
"""Up to so many orders are asked for one by one; more of them are worth a list."""
ASKED_AT_ONCE = 20
"""So many orders that no list had are asked for in one reading: brokers count calls, and a reading has its limit."""


class BrokerMovingError(BrokerError):
    """Fills came in while an account was read for the first time, so that position and fills do not belong together."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that is open by our record, or on its way; `age_s` since it changed, by the database's clock."""

    id: UUID
    origin: str
    broker_id: str | None
    ticker: str
    status: str
    created_at: datetime
    age_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """Our record as it stood when the reading began, at `begun` by the database's clock.

    `account` and `reconciled_at` are None before the first reconciliation. `fills_from` is from when on fills are read.
    `spelled` are pairs as our record writes them, `BTC/USD`.
    """

    begun: datetime
    account: str | None
    reconciled_at: datetime | None
    fills_from: datetime
    pending: tuple[Pending, ...] = ()
    suspected: tuple[Difference, ...] = ()
    spelled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the broker says. `orders` by its ids: all open ones, and those that ended of late or that we asked for.

    `gone` are our open orders that it denies, `never_came` those on their way that never reached it. `first` is True
    when this account was not read before. `names` says how a pair is written here by how it may be written there.
    """

    account: str
    first: bool
    orders: Mapping[str, BrokerOrder]
    gone: tuple[Pending, ...]
    never_came: tuple[Pending, ...]
    positions: Mapping[str, BrokerPosition]
    fills: tuple[Fill, ...]
    names: Mapping[str, str]
    equity: Decimal
    last_equity: Decimal
    market_open: bool


StrangersOf = Callable[[Collection[Fill]], Awaitable[Collection[str]]]
"""Tells which orders, by the broker's ids, of these fills are in no record of ours."""


async def read_broker(broker: Broker, ground: Ground, strangers_of: StrangersOf) -> Reading:
    """Everything a reconciliation needs, as the broker says it now. Sends nothing but reads.

    Raises `BrokerError`.
    """
    orders = await read_orders(broker, ground)
    missing = await ask_for_missing(broker, ground, orders)
    positions, account, clock = await read_state(broker)
    fills = await broker.fills_after(ground.fills_from)
    identity = f"{broker.address.name}:{account.account_number}"
    first = ground.account != identity
    # Orders of another account are not this one's to deny.
    missing = () if first and ground.account is not None else missing
    if first:
        positions = await positions_between(broker, ground.fills_from, fills)
    else:
        unknown = set(await strangers_of(fills)) - orders.keys()
        orders.update({each.id: each for each in await ask_singly(broker, unknown)})
    symbols = [order.symbol for order in orders.values()]
    names = spellings([*ground.spelled, *(each.ticker for each in ground.pending), *symbols])
    return Reading(
        account=identity,
        first=first,
        orders={each.id: replace(each, symbol=names.get(each.symbol, each.symbol)) for each in orders.values()},
        gone=tuple(each for each in missing if each.status != SUBMITTING),
        never_came=tuple(each for each in missing if each.status == SUBMITTING),
        positions={each.symbol: each for each in respell(positions, names)},
        fills=tuple(fills),
        names=names,
        equity=account.equity,
        last_equity=account.last_equity,
        market_open=clock.is_open,
    )


async def read_state(broker: Broker) -> tuple[Sequence[BrokerPosition], Account, MarketClock]:
    """Positions, account and clock.

    Raises the first failure, once all three have ended.
    """
    positions, account, clock = await asyncio.gather(
        broker.positions(), broker.account(), broker.clock(), return_exceptions=True
    )
    return answered(positions), answered(account), answered(clock)


def answered(answer: T | BaseException) -> T:
    """A call's answer, or its failure, raised."""
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def read_orders(broker: Broker, ground: Ground) -> dict[str, BrokerOrder]:
    """All open orders, and those of late: sent since the last reconciliation, or ended since then."""
    since = (ground.reconciled_at or ground.begun) - MARGIN
    opened, lately = await asyncio.gather(broker.open_orders(), broker.orders_after(since), return_exceptions=True)
    orders = {order.id: order for order in (*answered(opened), *answered(lately))}
    ended = [each for each in not_among(orders.values(), ground.pending) if each.broker_id is not None]
    if len(ended) > ASKED_SINGLY:
        oldest = min(each.created_at for each in ended) - MARGIN
        orders.update({order.id: order for order in await broker.orders_after(oldest)})
    return orders


async def ask_for_missing(broker: Broker, ground: Ground, orders: dict[str, BrokerOrder]) -> list[Pending]:
    """Ask for each order that no list had; what the broker knows goes into `orders`, what it denies comes back.

    An order that is on its way for less than `SUBMITTING_FOR_S` is left alone, and so are those beyond `ASKED_AT_ONCE`
    until the next time.
    """
    denied: list[Pending] = []
    unlisted = not_among(orders.values(), ground.pending)
    due = [each for each in unlisted if each.status != SUBMITTING or each.age_s >= SUBMITTING_FOR_S]
    for each in due[:ASKED_AT_ONCE]:
        found = await (
            broker.order_by_client_id(broker_order_id(each.id))
            if each.broker_id is None
            else order_or_none(broker, each.broker_id)
        )
        if found is None:
            denied.append(each)
        else:
            orders[found.id] = found
    suspects = {each.subject for each in ground.suspected if each.kind is Kind.UNKNOWN_ORDER} - orders.keys()
    orders.update({each.id: each for each in await ask_singly(broker, suspects)})
    return denied


def not_among(orders: Iterable[BrokerOrder], pending: Iterable[Pending]) -> list[Pending]:
    """The orders of ours that are not in a list of the broker's."""
    known: set[str] = set()
    for order in orders:
        known |= {order.id, order.client_order_id}
    return [each for each in pending if each.broker_id not in known and broker_order_id(each.id) not in known]


async def ask_singly(broker: Broker, broker_ids: Iterable[str]) -> list[BrokerOrder]:
    """The orders of these ids that the broker knows."""
    asked = [await order_or_none(broker, broker_id) for broker_id in sorted(broker_ids)]
    return [order for order in asked if order is not None]


async def order_or_none(broker: Broker, broker_id: str) -> BrokerOrder | None:
    """An order by the broker's id, None when it denies it."""
    try:
        return await broker.order(broker_id)
    except BrokerRefused as refusal:
        if refusal.status == NOT_FOUND:
            return None
        raise


async def positions_between(
    broker: Broker, fills_from: datetime, fills_before: Collection[Fill]
) -> Sequence[BrokerPosition]:
    """Positions that belong to these fills and no others: a record can only begin where nothing moves."""
    positions = await broker.positions()
    fills_after = await broker.fills_after(fills_from)
    if {fill.id for fill in fills_before} != {fill.id for fill in fills_after}:
        raise BrokerMovingError("fills came in while the account was read for the first time; reading it again")
    return positions


def spellings(symbols: Iterable[str]) -> dict[str, str]:
    """How pairs are written in orders, by how the broker writes them in positions: `BTCUSD` is `BTC/USD`."""
    return {symbol.replace("/", ""): symbol for symbol in symbols if "/" in symbol}


def respell(positions: Iterable[BrokerPosition], names: Mapping[str, str]) -> list[BrokerPosition]:
    """The positions under the symbols of their orders."""
    return [replace(each, symbol=names.get(each.symbol, each.symbol)) for each in positions]
