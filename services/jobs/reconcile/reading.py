"""Reading the broker: orders first, then positions, account and clock, fills last.

In this order an order that fills meanwhile is counted twice, as open and as held, and never not at all: limits that
rest on it can only be too tight.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused
from libs.trading.broker.types import BrokerOrder, BrokerPosition, Fill
from libs.trading.intent import broker_order_id
from services.jobs.reconcile.differences import Difference, Kind

NOT_FOUND = 404
SUBMITTING = "submitting"
SUBMITTING_FOR_S = 60.0
"""How long an order may be on its way before the broker is asked whether it ever came."""
MARGIN = timedelta(minutes=1)
"""How far the broker's clock and ours may lie apart, and how late an order may show in a list."""
ASKED_SINGLY = 3
"""Up to so many orders are asked for one by one; more of them are worth a list."""


class BrokerMovingError(BrokerError):
    """Fills came in while an account was read for the first time, so that position and fills do not belong together."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that is open by our record, or on its way. `age_s` by the database's clock."""

    id: UUID
    broker_id: str | None
    ticker: str
    status: str
    created_at: datetime
    age_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """Our record as it stood when the reading began, at `begun` by the database's clock.

    `account` and `reconciled_at` are None before the first reconciliation. `fills_from` is from when on fills are read.
    """

    begun: datetime
    account: str | None
    reconciled_at: datetime | None
    fills_from: datetime
    pending: tuple[Pending, ...] = ()
    suspected: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the broker says. `orders` by its ids: all open ones, and those that ended of late or that we asked for.

    `gone` are our open orders that it denies, `never_came` those on their way that never reached it. `first` is True
    when this account was not read before.
    """

    account: str
    first: bool
    orders: Mapping[str, BrokerOrder]
    gone: tuple[Pending, ...]
    never_came: tuple[Pending, ...]
    positions: Mapping[str, BrokerPosition]
    fills: tuple[Fill, ...]
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
    positions = await broker.positions()
    account = await broker.account()
    clock = await broker.clock()
    fills = await broker.fills_after(ground.fills_from)
    first = ground.account != broker.address.account
    if first:
        positions = await positions_between(broker, ground.fills_from, fills)
    else:
        unknown = set(await strangers_of(fills)) - orders.keys()
        orders.update({each.id: each for each in await ask_singly(broker, unknown)})
    names = spellings([*(order.symbol for order in orders.values()), *(each.ticker for each in ground.pending)])
    return Reading(
        account=broker.address.account,
        first=first,
        orders=orders,
        gone=tuple(each for each in missing if each.status != SUBMITTING),
        never_came=tuple(each for each in missing if each.status == SUBMITTING),
        positions={each.symbol: each for each in respell(positions, names)},
        fills=tuple(fills),
        equity=account.equity,
        last_equity=account.last_equity,
        market_open=clock.is_open,
    )


async def read_orders(broker: Broker, ground: Ground) -> dict[str, BrokerOrder]:
    """All open orders, and those of late: sent since the last reconciliation, or ended since then."""
    orders = {order.id: order for order in await broker.open_orders()}
    since = (ground.reconciled_at or ground.begun) - MARGIN
    ended = [each for each in not_among(orders.values(), ground.pending) if each.broker_id is not None]
    if len(ended) > ASKED_SINGLY:
        since = min(since, min(each.created_at for each in ended) - MARGIN)
    orders.update({order.id: order for order in await broker.orders_after(since)})
    return orders


async def ask_for_missing(broker: Broker, ground: Ground, orders: dict[str, BrokerOrder]) -> list[Pending]:
    """Ask for each order that no list had; what the broker knows goes into `orders`, what it denies comes back.

    An order that is on its way for less than `SUBMITTING_FOR_S` is left alone.
    """
    denied: list[Pending] = []
    for each in not_among(orders.values(), ground.pending):
        if each.status == SUBMITTING and each.age_s < SUBMITTING_FOR_S:
            continue
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
