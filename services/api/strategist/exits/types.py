"""A reducing order, what became of it, and how both are written down. No I/O."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from libs.trading.broker.types import BrokerOrder
from libs.trading.intent import BROKER_PREFIX, plain
from libs.trading.reasons import Reason
from libs.trading.types import ZERO, Order
from services.api.strategist.desk.record import ExitRecord
from services.api.strategist.submission import NOT_SENT, REJECTED, SUBMITTING
from services.api.strategist.words import printable

Name: TypeAlias = tuple[str, str]
"""A caller's key and its own order id: an id is taken for its owner alone."""
Mark: TypeAlias = tuple[UUID, str, str | None]
"""What of an exit is on record: its verdict, its status, and the broker's id."""

CLOCKS_DIFFER = timedelta(minutes=1)
GIVEN_UP = timedelta(seconds=60)
"""How long after its begin a close may still arrive at the broker."""

_ORDER_FIELDS = {field.name for field in fields(Order)}


@dataclass(frozen=True, slots=True)
class Exit:
    """A reducing order and what became of it. `refusal` is set where it was refused, and then nothing was sent."""

    order: Order
    verdict_id: UUID
    at: datetime
    status: str = SUBMITTING
    detail: str = ""
    broker_id: str | None = None
    filled_qty: Decimal = ZERO
    refusal: Reason | None = None

    @property
    def name(self) -> Name:
        """Whose order id it goes by."""
        return name_of(self.order)

    @property
    def failed(self) -> bool:
        """Whether nothing will come of it at the broker, for certain."""
        return self.status in {NOT_SENT, REJECTED}

    @property
    def again(self) -> bool:
        """Whether it never became an order there, so that it may be tried again."""
        return self.failed and self.broker_id is None

    @property
    def lost(self) -> bool:
        """Whether nobody knows if it arrived."""
        return self.status == SUBMITTING and self.broker_id is None and self.refusal is None

    @property
    def mark(self) -> Mark:
        """What of it is put on record."""
        return self.verdict_id, self.status, self.broker_id

    @property
    def record(self) -> ExitRecord:
        """What is put on record."""
        if self.refusal is not None:
            return ExitRecord(self.refusal, self.at, self.verdict_id, detail=self.detail)
        return ExitRecord(Reason.ALLOW, self.at, self.verdict_id, self.status, self.broker_id, self.detail)


def name_of(order: Order) -> Name:
    """Whose order id an order goes by."""
    return order.key_name, order.client_order_id


def form_of(order: Order) -> tuple[str, str, Decimal]:
    """What the broker's order of a close can be told by."""
    return order.ticker, order.side, order.qty


def may_be_close_of(lost: Exit, found: BrokerOrder) -> bool:
    """Whether a broker's order looks like the close that nobody answered for: its form, and when it came."""
    same = (found.symbol, found.side, found.qty) == form_of(lost.order)
    closing = found.type == "market" and not found.client_order_id.startswith(BROKER_PREFIX)
    return same and closing and found.submitted_at <= lost.at + GIVEN_UP + CLOCKS_DIFFER


def answered(begun: Exit, found: BrokerOrder) -> Exit:
    """The exit with the broker's word."""
    return replace(begun, status=printable(found.status), broker_id=printable(found.id), filled_qty=found.filled_qty)


def written(done: Exit) -> dict[str, Any]:
    """An exit as JSON."""
    order = asdict(done.order) | {"qty": plain(done.order.qty), "ref_price": plain(done.order.ref_price)}
    return {
        "order": order,
        "verdict_id": str(done.verdict_id),
        "at": done.at.isoformat(),
        "status": done.status,
        "detail": done.detail,
        "broker_id": done.broker_id,
        "refusal": None if done.refusal is None else done.refusal.value,
    }


def read_exit(said: Mapping[str, Any], *, at: datetime) -> Exit:
    """An exit from its JSON; `at` where that has no moment. What a newer release added is left out.

    Raises `ValueError`, `KeyError`, `TypeError` or `ArithmeticError` for what is no exit.
    """
    values: dict[str, Any] = {name: value for name, value in said["order"].items() if name in _ORDER_FIELDS}
    values.update(qty=Decimal(values["qty"]), ref_price=Decimal(values["ref_price"]))
    begun = datetime.fromisoformat(said["at"]) if "at" in said else at
    if begun.tzinfo is None:
        raise ValueError("its moment has no zone")
    return Exit(
        order=Order(**values),
        verdict_id=UUID(said["verdict_id"]),
        at=begun,
        status=str(said["status"]),
        detail=str(said["detail"]),
        broker_id=said["broker_id"],
        refusal=None if said["refusal"] is None else Reason(said["refusal"]),
    )


def copied_mark(done: Exit) -> dict[str, Any]:
    """The note that an exit is on record, as far as it had come."""
    return {"verdict_id": str(done.verdict_id), "status": done.status, "broker_id": done.broker_id}


def read_mark(said: Mapping[str, Any]) -> Mark:
    """What was on record. Raises `ValueError`, `KeyError`, `TypeError`."""
    return UUID(said["verdict_id"]), str(said["status"]), said["broker_id"]
