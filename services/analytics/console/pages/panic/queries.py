"""What Postgres adds to the record of an exit: who pressed, and who let entries in again."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.analytics.console.pages.panic.words import Known
from services.analytics.console.presses import storable

LIMIT_S = 1.0
"""The page of the red button waits no longer than that for what is only told beside it."""
CLOCKS = timedelta(seconds=5)
"""How far the clocks of Postgres and of the machine with the journal may lie apart."""

log = structlog.get_logger(__name__)

# A press is kept once it was answered, so after the exit began; one that got no answer may have begun it. Of those that
# joined it the first is meant.
PRESSED = text(
    """
    select key_name from presses
    where action = 'panic exit' and at >= :since and reason = :reason and outcome !~ '^[1-9]' order by id limit 1
    """
)
REARMED = text("select rearmed_at, rearmed_by, rearm_reason from halts where id = :id")


async def told_of(engine: AsyncEngine, exit_id: UUID, begun: tuple[datetime, str] | None) -> Known:
    """What is known of an exit beside its own record; nothing where Postgres does not answer at once."""
    try:
        async with asyncio.timeout(LIMIT_S), engine.connect() as connection:
            values = None if begun is None else {"since": begun[0] - CLOCKS, "reason": storable(begun[1])}
            by = None if values is None else await connection.scalar(PRESSED, values)
            row = (await connection.execute(REARMED, {"id": exit_id})).first()
    except Exception as error:  # noqa: BLE001 - whatever it is, the page must stand
        log.warning("panic_page_without_postgres", error=type(error).__name__)
        return Known(asked=False)
    return Known(by) if row is None else Known(by, row.rearmed_at, row.rearmed_by, row.rearm_reason)
