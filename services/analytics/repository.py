"""What was said about a ticker, as it is stored."""

from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

RECENT_SOCIAL = text(
    """
    select ts, source, handle, text from social_messages
    where ticker = :ticker order by ts desc, source, external_id limit :limit
    """
)

RECENT_RATINGS = text(
    """
    select ts, provider, firm, analyst, action, rating, target from analyst_ratings
    where ticker = :ticker order by ts desc, source, external_id limit :limit
    """
)


async def recent_social(connection: AsyncConnection, ticker: str, limit: int) -> Sequence[RowMapping]:
    """The newest posts about a ticker."""
    return (await connection.execute(RECENT_SOCIAL, {"ticker": ticker, "limit": limit})).mappings().all()


async def recent_ratings(connection: AsyncConnection, ticker: str, limit: int) -> Sequence[RowMapping]:
    """The newest ratings of a ticker."""
    return (await connection.execute(RECENT_RATINGS, {"ticker": ticker, "limit": limit})).mappings().all()
