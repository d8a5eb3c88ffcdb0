"""Orders at the gate: `/strategist/gate` asks, `/strategist/orders` asks and sends."""

import time
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints
from sqlalchemy import text

from libs.json_numbers import Number
from libs.keys import GuardedRoute, Key, require
from libs.problems import BadGateway, Conflict
from libs.trading.broker.errors import BrokerError
from libs.trading.intent import intent_id
from libs.trading.reasons import Reason
from libs.trading.types import Answer, Mode, Order
from services.api.deps import State
from services.api.strategist.desk.desk import NoVerdict
from services.api.strategist.desk.record import Asked, Told
from services.api.strategist.exits.exits import Exit
from services.api.strategist.state import Strategist
from services.api.strategist.submission import HALTED, NOT_SENT, REJECTED, Placed

router = APIRouter(prefix="/strategist", route_class=GuardedRoute)

may_trade = Depends(require("trade"))
Caller = Annotated[Key, may_trade]


def get_strategist(request: Request) -> Strategist:
    """The strategist of this process."""
    return request.app.state.strategist


Desk = Annotated[Strategist, Depends(get_strategist)]

Name = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,64}$", strip_whitespace=True)]
Quantity = Annotated[Decimal, Field(gt=0, max_digits=18, decimal_places=9, allow_inf_nan=False)]
Price = Annotated[Decimal, Field(gt=0, max_digits=24, decimal_places=15, allow_inf_nan=False)]


class OrderBody(BaseModel):
    """An order. `client_order_id` is the caller's own: the same one with the same body is the same order.

    `reduce_only` orders make a position smaller and are not gated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ticker: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-/:=^]{0,31}$")]
    side: Literal["buy", "sell"]
    qty: Quantity
    ref_price: Price
    client_order_id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
    reduce_only: StrictBool = False
    horizon: Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{1,16}$")] | None = None
    strategy: Name | None = None

    def order(self, key: Key) -> Order:
        """The order of this caller."""
        return Order(
            ticker=self.ticker,
            side=self.side,
            qty=self.qty,
            ref_price=self.ref_price,
            client_order_id=self.client_order_id,
            key_name=key.name,
            reduce_only=self.reduce_only,
            horizon=self.horizon,
            strategy=self.strategy or "",
        )


class OrderView(BaseModel):
    """An order as far as it has come. `status` is the broker's word, or submitting, rejected, not_sent."""

    id: UUID
    client_order_id: str
    ticker: str
    side: Literal["buy", "sell"]
    qty: Number
    limit_price: Number | None
    status: str
    filled_qty: Number = 0
    filled_avg_price: Number | None = None
    broker_id: str | None = None
    reason: str = ""


class VerdictAnswer(BaseModel):
    """What the gate says. `verdict` acts; `would_have` is what it would have said in enforce.

    `verdict_id` is null where no verdict could be stored; then an entry is denied.
    """

    verdict: Answer
    would_have: Answer
    mode: Mode
    reasons: list[str]
    forecast_id: UUID | None
    decision_age_s: Number | None
    verdict_id: UUID | None


class OrderAnswer(VerdictAnswer):
    """The verdict and the order it let out."""

    order: OrderView


STORED_ORDER = text(
    """
    select id, client_order_id, ticker, side, qty, limit_price, status, filled_qty, filled_avg_price, broker_id, reason
    from orders where id = :id
    """
)


@router.post("/gate", dependencies=[may_trade])
async def gate(desk: Desk, asked: OrderBody, key: Caller) -> VerdictAnswer:
    """Ask the gate; nothing is sent. A later order with the same id and body uses this verdict."""
    return VerdictAnswer(**members(await verdict_on(desk, Asked(asked.order(key)))))


@router.post("/orders", dependencies=[may_trade])
async def orders(desk: Desk, state: State, asked: OrderBody, key: Caller) -> OrderAnswer:
    """Ask the gate, then the broker. A denied order is 409 with the verdict; one the broker did not take is 502."""
    order = asked.order(key)
    if order.reduce_only:
        return await reduce(desk, order)
    since = time.monotonic()
    told = await verdict_on(desk, Asked(order, send=True))
    if told.verdict == "deny":
        raise Conflict(f"denied: {', '.join(told.reasons)}", extra=members(told))
    if told.limit_price is None:
        async with state.engine.connect() as reader:
            known = (await reader.execute(STORED_ORDER, {"id": intent_id(order)})).mappings().one()
        return of_entry(told, OrderView.model_validate(dict(known)))
    sent = desk.submission.send(
        order, order_id=intent_id(order), limit_price=told.limit_price, since=since, verdict_id=told.verdict_id
    )
    return of_entry(told, view_of_entry(order, told, placed=await sent))


async def verdict_on(desk: Strategist, asked: Asked) -> Told:
    """The verdict; where none came about, a reducing order passes all the same and an entry is denied."""
    try:
        return await desk.desk.verdict(asked)
    except NoVerdict as error:
        if asked.order.reduce_only:
            return Told("allow", "allow", desk.desk.mode, (Reason.ALLOW.value,), None, None, None)
        return Told("deny", "deny", desk.desk.mode, (error.reason.value,), None, None, None)


def view_of_entry(order: Order, told: Told, *, placed: Placed) -> OrderView:
    """An entry that was handed to the broker."""
    found = placed.broker
    return OrderView(
        id=intent_id(order),
        client_order_id=order.client_order_id,
        ticker=order.ticker,
        side=order.side,
        qty=float(order.qty),
        limit_price=None if told.limit_price is None else float(told.limit_price),
        status=placed.status,
        filled_qty=0 if found is None else float(found.filled_qty),
        filled_avg_price=None if found is None or found.filled_avg_price is None else float(found.filled_avg_price),
        broker_id=None if found is None else found.id,
        reason=placed.reason,
    )


def of_entry(told: Told, view: OrderView) -> OrderAnswer:
    """The answer to an entry. Raises where there is no order at the broker, now and whenever it is asked for again."""
    if view.status == NOT_SENT and view.reason.startswith(HALTED):
        halted = {**members(told), "verdict": "deny", "reasons": [Reason.HALTED.value]}
        raise Conflict(f"denied: {view.reason}", extra={**halted, "order": view.model_dump(mode="json")})
    return answered(told, view, failed=view.status in {NOT_SENT, REJECTED})


async def reduce(desk: Strategist, order: Order) -> OrderAnswer:
    """Send a reducing order, whatever the gate, the halt and Postgres are doing."""
    try:
        done = await desk.exits.reduce(order)
    except BrokerError as error:
        raise BadGateway(f"the broker's position could not be read, and nothing was sent: {error}") from error
    refused = done.refusal is not None
    told = Told(
        verdict="deny" if refused else "allow",
        would_have="deny" if refused else "allow",
        mode=desk.desk.mode,
        reasons=((done.refusal or Reason.ALLOW).value,),
        forecast_id=None,
        decision_age_s=None,
        verdict_id=done.verdict_id,
    )
    if refused:
        raise Conflict(f"denied: {done.refusal}; {done.detail}".rstrip("; "), extra=members(told))
    return answered(told, view_of(done), failed=done.failed)


def view_of(done: Exit) -> OrderView:
    """An exit as an order."""
    order = done.order
    return OrderView(
        id=intent_id(order),
        client_order_id=order.client_order_id,
        ticker=order.ticker,
        side=order.side,
        qty=float(order.qty),
        limit_price=None,
        status=done.status,
        filled_qty=float(done.filled_qty),
        broker_id=done.broker_id,
        reason=done.detail,
    )


def answered(told: Told, view: OrderView, *, failed: bool) -> OrderAnswer:
    """The answer, or the problem of an order that is not at the broker."""
    if failed:
        extra = {**members(told), "order": view.model_dump(mode="json")}
        raise BadGateway(f"the gate allowed it and the broker has no order: {view.reason}", extra=extra)
    return OrderAnswer(**members(told), order=view)


def members(told: Told) -> dict[str, Any]:
    """A verdict as members of an answer, in JSON's types."""
    return {
        "verdict": told.verdict,
        "would_have": told.would_have,
        "mode": told.mode,
        "reasons": list(told.reasons),
        "forecast_id": None if told.forecast_id is None else str(told.forecast_id),
        "decision_age_s": told.decision_age_s,
        "verdict_id": None if told.verdict_id is None else str(told.verdict_id),
    }
