"""A desk that runs, and how its tests look at it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.limits import Limits, Terms
from services.api.strategist.desk.desk import Desk, GateTerms
from services.api.strategist.desk.record import Told
from tests.integration.desk_cases import ACCOUNT, MODEL, turn

FILL = [
    """
    insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, qty,
      ref_price, reduce_only, verdict, would_have, mode, reasons, payload, hash)
    select n, gen_random_uuid(), now(), 'k', '', n, 'i', true, 'AAPL', 'buy', 1, 1, false, 'allow', 'allow', 'enforce',
      '{ALLOW}', '', '' from generate_series(1, 5000) as n
    """,
    """
    insert into authorisations (client_order_id, forecast_id, verdict_id, at)
    select client_order_id, gen_random_uuid(), id, now() - interval '1 day' from gate_verdicts
    """,
    """
    insert into orders (id, origin, verdict_id, client_order_id, ticker, side, qty, status, broker_id, created_at)
    select gen_random_uuid(), 'entry', verdict_id, client_order_id, 'AAPL', 'buy', 1, 'filled', client_order_id, at
    from authorisations
    """,
    "insert into switches (name, value, set_by, reason) select 'X', true, '', '' from generate_series(1, 999)",
]
"""Five thousand old verdicts, with all that belongs to them."""


@asynccontextmanager
async def desk_on(database_url: str, state: Path, *, timeout_s: float = 20, **terms: Any) -> AsyncGenerator[Desk, None]:
    """A running desk."""
    rests_on = GateTerms(terms.pop("limits", Limits()), Terms(model=MODEL, **terms), ACCOUNT)
    desk = Desk(database_url, rests_on=rests_on, state=state, timeout_s=timeout_s)
    desk.start()
    try:
        yield desk
    finally:
        await desk.close()


async def rows(engine: AsyncEngine, query: str) -> list[dict[str, Any]]:
    """Rows of a query."""
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


async def enforce(engine: AsyncEngine) -> None:
    """Let the policy gate."""
    await turn(engine, "LLM_SHADOW_MODE", False)


def says(told: Told) -> tuple[str, str, str, tuple[str, ...]]:
    """A verdict in short."""
    return told.verdict, told.would_have, told.mode, told.reasons
