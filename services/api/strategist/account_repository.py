"""The queries about the account: orders, fills, positions and verdicts as they stand in Postgres."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

Row = RowMapping

# Each page begins after the row that `before` names. Its moment alone bounds the index scan; the id decides among rows
# of the same moment.
ORDERS = text(
    """
    select o.id, o.origin, o.verdict_id, o.key_name, o.strategy, o.client_order_id, o.ticker, o.side, o.qty,
      o.limit_price, o.status, o.broker_id, o.reason, o.filled_qty, o.filled_avg_price, o.created_at, o.updated_at
    from orders o
    where (cast(:ticker as text) is null or o.ticker = :ticker)
      and (cast(:before as uuid) is null or (
        o.created_at <= (select created_at from orders where id = :before)
        and (o.created_at, o.id) < (select created_at, id from orders where id = :before)))
    order by o.created_at desc, o.id desc limit :limit
    """
)

FILLS = text(
    """
    select f.id, o.id as order_id, f.broker_id, f.ticker, f.side, f.qty, f.price, f.at
    from fills f left join orders o on o.broker_id = f.broker_id
    where (cast(:ticker as text) is null or f.ticker = :ticker)
      and (cast(:before as text) is null or (
        f.at <= (select at from fills where id = :before)
        and (f.at, f.id) < (select at, id from fills where id = :before)))
    order by f.at desc, f.id desc limit :limit
    """
)

POSITIONS = text(
    """
    select ticker, qty, avg_entry_price, market_price, expected_qty, reconciled_at from positions
    where cast(:ticker as text) is null or ticker = :ticker
    order by ticker
    """
)

ACCOUNT = text(
    """
    select account, equity, last_equity, market_open, reconciled_at, differences,
      cast(extract(epoch from clock_timestamp() - reconciled_at) as float8) as age_s
    from broker_state
    """
)

VERDICT_COLUMNS = """
    id as verdict_id, seq, at, key_name, strategy, client_order_id, ticker, side, qty, ref_price, reduce_only, first,
    verdict, would_have, mode, reasons, forecast_id, feed, horizon, model, as_of, decision_age_s, prompt_version, arm,
    hash
"""
VERDICTS = text(
    f"""
    select {VERDICT_COLUMNS} from gate_verdicts
    where cast(:before as uuid) is null or seq < (select seq from gate_verdicts where id = :before)
    order by seq desc limit :limit
    """
)
VERDICTS_OF_TICKER = text(
    f"""
    select {VERDICT_COLUMNS} from gate_verdicts
    where ticker = :ticker
      and (cast(:before as uuid) is null or seq < (select seq from gate_verdicts where id = :before))
    order by seq desc limit :limit
    """
)

ORDER = text("select broker_id, status from orders where id = :id")


async def orders(connection: AsyncConnection, *, limit: int, before: UUID | None, ticker: str | None) -> Sequence[Row]:
    """Up to `limit` orders older than the order `before`, newest first."""
    values = {"limit": limit, "before": before, "ticker": ticker}
    return (await connection.execute(ORDERS, values)).mappings().all()


async def fills(connection: AsyncConnection, *, limit: int, before: str | None, ticker: str | None) -> Sequence[Row]:
    """Up to `limit` fills older than the fill `before`, newest first."""
    values = {"limit": limit, "before": before, "ticker": ticker}
    return (await connection.execute(FILLS, values)).mappings().all()


async def positions(connection: AsyncConnection, *, ticker: str | None) -> Sequence[Row]:
    """Every position as last read, by ticker."""
    return (await connection.execute(POSITIONS, {"ticker": ticker})).mappings().all()


async def account(connection: AsyncConnection) -> Row | None:
    """The account as last read, None before the first time."""
    return (await connection.execute(ACCOUNT)).mappings().one_or_none()


async def verdicts(
    connection: AsyncConnection, *, limit: int, before: UUID | None, ticker: str | None
) -> Sequence[Row]:
    """Up to `limit` verdicts older than the verdict `before`, newest first."""
    values = {"limit": limit, "before": before} | ({} if ticker is None else {"ticker": ticker})
    found = await connection.execute(VERDICTS if ticker is None else VERDICTS_OF_TICKER, values)
    return found.mappings().all()


async def order(connection: AsyncConnection, order_id: UUID) -> Row | None:
    """The broker's id and the status of one order of ours."""
    return (await connection.execute(ORDER, {"id": order_id})).mappings().one_or_none()
