"""The account as reconciled with the broker: orders, fills, positions, verdicts; and cancelling an order."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import structlog
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from libs.json_numbers import JsonValue, Number
from libs.keys import Key, require
from libs.problems import BadGateway, Conflict, NotFound, Unavailable
from libs.trading.broker.client import Broker
from libs.trading.broker.errors import BrokerError, BrokerRefused, BrokerUnreachable
from libs.trading.broker.types import BrokerOrder
from libs.trading.intent import broker_order_id
from libs.trading.types import Answer, Mode, OrderSide
from services.api.deps import Reader, State
from services.api.strategist import account_repository as repository

MOST = 500
NOT_FOUND, UNPROCESSABLE = 404, 422
DATABASE_AWAY = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/strategist")

may_read = Depends(require("read"))
may_trade = Depends(require("trade"))


def get_broker(request: Request) -> Broker:
    """The broker of this process."""
    return request.app.state.strategist.broker


Ticker = Annotated[str | None, Field(min_length=1, max_length=32)]
Limit = Annotated[int, Field(ge=1, le=MOST)]


class OrderRow(BaseModel):
    """An order. `id` is ours; `client_order_id` is as the caller named it, or the broker's for orders not of ours.

    `origin` is entry, exit, panic (sent by a panic exit) or broker (found there). `status` is submitting, not_sent, or
    the broker's word.
    """

    id: UUID
    origin: Literal["entry", "exit", "panic", "broker"]
    verdict_id: UUID | None
    key_name: str
    strategy: str
    client_order_id: str
    ticker: str
    side: str
    qty: Number
    limit_price: Number | None
    status: str
    broker_id: str | None
    reason: str
    filled_qty: Number
    filled_avg_price: Number | None
    created_at: datetime
    updated_at: datetime


class FillRow(BaseModel):
    """One execution; `order_id` is our order's."""

    id: str
    order_id: UUID | None
    broker_id: str
    ticker: str
    side: str
    qty: Number
    price: Number
    at: datetime


class PositionRow(BaseModel):
    """A position as the broker told it at `reconciled_at`; `expected_qty` is what the fills we know make."""

    ticker: str
    qty: Number
    avg_entry_price: Number
    market_price: Number
    expected_qty: Number
    reconciled_at: datetime


class AccountState(BaseModel):
    """The account as last read, `age_s` ago; `differences` were seen once and are not settled yet."""

    account: str
    equity: Number
    last_equity: Number
    market_open: bool
    differences: JsonValue
    reconciled_at: datetime
    age_s: Number


class VerdictRow(BaseModel):
    """What an order was told, and by what. `seq` and `hash` are its place in the chain; `first` is False for a later
    verdict on an order that was let through before.
    """

    verdict_id: UUID
    seq: int
    at: datetime
    key_name: str
    strategy: str
    client_order_id: str
    ticker: str
    side: OrderSide
    qty: Number
    ref_price: Number
    reduce_only: bool
    first: bool
    verdict: Answer
    would_have: Answer
    mode: Mode
    reasons: list[str]
    forecast_id: UUID | None
    feed: str | None
    horizon: str | None
    model: str | None
    as_of: datetime | None
    decision_age_s: Number | None
    prompt_version: str | None
    arm: str | None
    hash: str


class Cancelled(BaseModel):
    """An order whose end the broker was asked for. `status` is its word since: what has not filled by then, does not.

    `status` is null where the broker took the request and did not say what came of it.
    """

    id: str
    broker_id: str
    ticker: str
    status: str | None
    filled_qty: Number


class Asked(BaseModel):
    """Unknown names are refused: a misspelt one would filter nothing in silence."""

    model_config = ConfigDict(extra="forbid")

    ticker: Ticker = None


class PageAsked(Asked):
    """A page, newest first; `before` is the id of the last row of the page before."""

    limit: Limit = 50
    before: UUID | None = None


class FillsAsked(Asked):
    """A page of fills, whose ids are the broker's."""

    limit: Limit = 50
    before: Annotated[str | None, Field(min_length=1, max_length=128)] = None


@router.get("/orders", dependencies=[may_read])
async def orders(reader: Reader, asked: Annotated[PageAsked, Query()]) -> Sequence[OrderRow]:
    """Orders, newest first, as they stood at the last reconciliation or since."""
    rows = await repository.orders(reader, limit=asked.limit, before=asked.before, ticker=asked.ticker)
    return [OrderRow.model_validate(row) for row in rows]


@router.get("/fills", dependencies=[may_read])
async def fills(reader: Reader, asked: Annotated[FillsAsked, Query()]) -> Sequence[FillRow]:
    """Executions, newest first."""
    rows = await repository.fills(reader, limit=asked.limit, before=asked.before, ticker=asked.ticker)
    return [FillRow.model_validate(row) for row in rows]


@router.get("/positions", dependencies=[may_read])
async def positions(reader: Reader, asked: Annotated[Asked, Query()]) -> Sequence[PositionRow]:
    """Positions as the broker last told them."""
    return [PositionRow.model_validate(row) for row in await repository.positions(reader, ticker=asked.ticker)]


@router.get("/account", dependencies=[may_read])
async def account(reader: Reader) -> AccountState:
    """The account as the broker last told it; 404 before the first reconciliation."""
    row = await repository.account(reader)
    if row is None:
        raise NotFound("the broker's account was not read yet; services.jobs reconciles it")
    return AccountState.model_validate(row)


@router.get("/recent", dependencies=[may_read])
async def recent(reader: Reader, asked: Annotated[PageAsked, Query()]) -> Sequence[VerdictRow]:
    """Verdicts, newest first; `before` is a `verdict_id`."""
    rows = await repository.verdicts(reader, limit=asked.limit, before=asked.before, ticker=asked.ticker)
    return [VerdictRow.model_validate(row) for row in rows]


@router.delete("/orders/{order_id}")
async def cancel(
    broker: Annotated[Broker, Depends(get_broker)],
    state: State,
    key: Annotated[Key, may_trade],
    order_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,64}$", description="our id of an order, or the broker's")],
) -> Cancelled:
    """Cancel an order. No gate, no halt and no lack of a database stops it; what has filled stays filled."""
    try:
        found = await find(broker, state, order_id)
        asked_for = await broker.cancel(found.id)
        since = await after(broker, found)
    except BrokerRefused as error:
        if error.status == NOT_FOUND:
            raise NotFound(f"the broker knows no order {order_id}") from error
        raise BadGateway(f"the broker refused: {error}") from error
    except BrokerUnreachable as error:
        raise Unavailable(f"nothing was cancelled: {error}") from error
    except BrokerError as error:
        raise BadGateway(f"the broker gave no clear answer, so ask again: {error}") from error
    log.info("order_cancelled", order_id=order_id, broker_id=found.id, key_name=key.name, taken=asked_for)
    if not asked_for:
        raise Conflict(f"the order cannot be cancelled any more: it is {(since or found).status}")
    told = since or found
    return Cancelled(
        id=order_id,
        broker_id=found.id,
        ticker=found.symbol,
        status=None if since is None else since.status,
        filled_qty=float(told.filled_qty),
    )


async def find(broker: Broker, state: State, order_id: str) -> BrokerOrder:
    """The broker's order: by our id, which it was sent with; by its own; by our record, where that can be read."""
    own = as_uuid(order_id)
    found = None if own is None else await broker.order_by_client_id(broker_order_id(own))
    found = found or await order_or_none(broker, order_id)
    if found is not None:
        return found
    broker_id = None if own is None else await broker_id_of(state, own)
    if broker_id is None:
        raise NotFound(f"there is no order {order_id}")
    return await broker.order(broker_id)


async def broker_id_of(state: State, order_id: UUID) -> str | None:
    """The broker's id of an order that it named itself, such as an exit; None for one that is in no record."""
    try:
        async with state.engine.connect() as reader:
            row = await repository.order(reader, order_id)
    except DATABASE_AWAY as error:
        raise Unavailable(f"the broker does not know {order_id}, and our record cannot be read now") from error
    if row is None:
        return None
    if row["broker_id"] is None:
        raise Conflict(f"the order is {row['status']}: the broker does not have it, or not yet")
    return row["broker_id"]


async def order_or_none(broker: Broker, broker_id: str) -> BrokerOrder | None:
    """An order by the broker's id, None where it does not know it or takes it for no id."""
    try:
        return await broker.order(broker_id)
    except BrokerRefused as error:
        if error.status in {NOT_FOUND, UNPROCESSABLE}:
            return None
        raise


async def after(broker: Broker, order: BrokerOrder) -> BrokerOrder | None:
    """The order since; None where the broker did not say."""
    try:
        return await broker.order(order.id)
    except BrokerError as error:
        log.info("order_not_read_after_cancel", broker_id=order.id, error=str(error))
        return None


def as_uuid(words: str) -> UUID | None:
    """The UUID, None for what is none."""
    try:
        return UUID(words)
    except ValueError:
        return None
