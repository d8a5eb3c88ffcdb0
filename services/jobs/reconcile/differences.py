"""Where our record and the broker's differ. Pure: what was read goes in, what differs comes out.

A difference counts only when two reconciliations in a row see it: orders and fills are on their way while the broker
is read, page by page, and most of what differs at first has an explanation a moment later.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate
from typing import Any

from libs.trading.broker.types import BrokerOrder, BrokerPosition
from libs.trading.intent import plain

ZERO = Decimal(0)


class Kind(StrEnum):
    """What may differ."""

    UNKNOWN_ORDER = "UNKNOWN_ORDER"
    """The broker has an order that is in no record of ours."""
    MISSING_ORDER = "MISSING_ORDER"
    """Our record has an open order that the broker denies."""
    LATE_ORDER = "LATE_ORDER"
    """An order of ours that was given up is at the broker after all."""
    POSITION_DIFFERS = "POSITION_DIFFERS"
    """The position is not what the fills of known orders make."""
    ACCOUNT_CHANGED = "ACCOUNT_CHANGED"
    """The broker, or the account there, is another one than before."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. `subject` is the broker's order id, our order id, a ticker or an account.

    `mark` tells one difference of a subject from another: a position's, how far off it is. `since` is from when on
    fills must be read again once it is settled: those of an order nobody knew were left out.
    """

    kind: Kind
    subject: str
    detail: str
    since: datetime
    mark: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same difference as one seen before."""
        return self.kind, self.subject, self.mark

    def as_json(self) -> dict[str, str]:
        """For the row of the last reconciliation, which remembers what was seen once."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "detail": self.detail,
            "mark": self.mark,
            "since": self.since.isoformat(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Difference":
        """The opposite of `as_json`."""
        since = datetime.fromisoformat(value["since"])
        return cls(Kind(value["kind"]), value["subject"], value["detail"], since, value["mark"])


@dataclass(frozen=True, slots=True)
class Fill:
    """What a fill did to a position: `qty` signed."""

    ticker: str
    qty: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """One ticker after the comparison; `expected_qty` is what our record says from now on."""

    ticker: str
    qty: Decimal
    avg_entry_price: Decimal
    market_price: Decimal
    expected_qty: Decimal


@dataclass(frozen=True, slots=True)
class Seen:
    """The differences of one reconciliation: `confirmed` were seen before, `suspected` are new."""

    confirmed: tuple[Difference, ...]
    suspected: tuple[Difference, ...]


def sort_out(found: Iterable[Difference], before: Collection[Difference]) -> Seen:
    """Tell what is seen for the second time in a row from what is seen for the first; `since` stays the first one's."""
    earlier = {difference.key: difference for difference in before}
    confirmed: list[Difference] = []
    suspected: list[Difference] = []
    for difference in found:
        known_since = earlier.get(difference.key)
        (suspected if known_since is None else confirmed).append(difference)
    return Seen(tuple(confirmed), tuple(suspected))


def unknown_order(order: BrokerOrder, since: datetime) -> Difference:
    """An order of the broker's that nobody here sent."""
    detail = f"the broker has an order nobody here sent: {order.side} {plain(order.qty)} {order.symbol} ({order.id})"
    return Difference(Kind.UNKNOWN_ORDER, order.id, detail, since)


def missing_order(order_id: str, ticker: str, since: datetime) -> Difference:
    """An open order of ours that the broker denies."""
    detail = f"the broker does not know our open order {order_id} of {ticker}"
    return Difference(Kind.MISSING_ORDER, order_id, detail, since)


def late_order(order: BrokerOrder, order_id: str, since: datetime) -> Difference:
    """An order of ours that our record had given up, and that the broker has. There is no doubt about it."""
    told = f"{order.side} {plain(order.qty)} {order.symbol} ({order_id}), {order.status}"
    return Difference(Kind.LATE_ORDER, order_id, f"an order of ours that was given up is at the broker: {told}", since)


def compare_positions(
    actual: Mapping[str, BrokerPosition], expected: Mapping[str, Decimal], fills: Iterable[Fill], since: datetime
) -> tuple[list[Settled], list[Difference]]:
    """What each position is, what our record says it should be, and where these differ.

    `expected` is from before `fills`, which were read after the positions: a position that stood between two of them is
    as it should be.
    """
    by_ticker: dict[str, list[Fill]] = {}
    for fill in fills:
        by_ticker.setdefault(fill.ticker, []).append(fill)
    settled: list[Settled] = []
    found: list[Difference] = []
    for ticker in sorted({*actual, *expected, *by_ticker}):
        position = actual.get(ticker)
        qty = ZERO if position is None else position.qty
        steps = list(stands(expected.get(ticker, ZERO), by_ticker.get(ticker, [])))
        if qty not in steps:
            found.append(differing_position(ticker, qty, expected=steps[-1], since=since))
        price = ZERO if position is None else position.avg_entry_price
        market = ZERO if position is None else position.current_price
        settled.append(Settled(ticker, qty, price, market, steps[-1]))
    return settled, found


def stands(expected: Decimal, fills: Iterable[Fill]) -> Iterator[Decimal]:
    """Where a position stood, before the first of these fills and after each."""
    in_order = sorted(fills, key=lambda fill: fill.at)
    return accumulate((fill.qty for fill in in_order), initial=expected)


def differing_position(ticker: str, qty: Decimal, *, expected: Decimal, since: datetime) -> Difference:
    """A position that the fills of known orders do not explain."""
    detail = f"the broker holds {plain(qty)} {ticker}; the fills we know make {plain(expected)}"
    return Difference(Kind.POSITION_DIFFERS, ticker, detail, since, mark=plain((qty - expected).normalize()))


def adopt(positions: Iterable[Settled], differing: Collection[str]) -> list[Settled]:
    """The positions with the broker's word taken for the tickers that differ; what is nothing to both is left out."""
    adopted = (
        Settled(each.ticker, each.qty, each.avg_entry_price, each.market_price, each.qty)
        if each.ticker in differing
        else each
        for each in positions
    )
    return [each for each in adopted if each.qty or each.expected_qty]
