"""Asks Postgres for an exit that another process on another disk may have sent."""

import asyncio
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from libs.trading.intent import intent_id
from libs.trading.types import Order
from services.api.strategist.exits.types import Exit

WITHIN_S = 0.5
"""An exit waits no longer for a database that may be away."""

SENT_EXIT = text(
    """
    select verdict_id, status, broker_id, filled_qty, reason, created_at from orders
    where id = :id and origin = 'exit' and (broker_id is not null or status not in ('not_sent', 'rejected'))
    """
)

log = structlog.get_logger(__name__)


class Recorded:
    """The exits on record. Calling it gives the one of an order, None where Postgres knows none or does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def __call__(self, order: Order) -> Exit | None:
        """See the class."""
        try:
            async with asyncio.timeout(WITHIN_S), self._engine.connect() as reader:
                row = (await reader.execute(SENT_EXIT, {"id": intent_id(order)})).mappings().one_or_none()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("exit_not_asked_for_elsewhere", ticker=order.ticker, error=type(error).__name__)
            return None
        if row is None:
            return None
        return Exit(
            order=order,
            verdict_id=uuid7() if row["verdict_id"] is None else UUID(str(row["verdict_id"])),
            at=row["created_at"],
            status=row["status"],
            detail=row["reason"],
            broker_id=row["broker_id"],
            filled_qty=row["filled_qty"],
        )
