"""The question that decides whether shadow is lifted: what would have been blocked, and what did it make."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from libs.keys import require
from libs.problems import Unprocessable
from libs.shadow import USUAL_PAST, Shadow, shadow_of
from services.analytics.recent import TICKER, AnalyticsState, get_state

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

router = APIRouter(prefix="/analytics", dependencies=[Depends(require("read"))])


Moment = Annotated[AwareDatetime, Field(ge=EARLIEST, le=LATEST)]


class ShadowQuery(BaseModel):
    """What is asked for. Unknown names are refused. Times are those of the verdicts, not of the market."""

    model_config = ConfigDict(extra="forbid")

    since: Annotated[Moment | None, Field(description="30 days before `until` where left out")] = None
    until: Annotated[Moment | None, Field(description="now where left out; itself not included")] = None
    ticker: Annotated[str | None, Field(pattern=TICKER, description="as written, or in capitals")] = None


@router.get("/shadow")
async def shadow(
    state: Annotated[AnalyticsState, Depends(get_state)], asked: Annotated[ShadowQuery, Query()]
) -> Shadow:
    """What enforcing would have blocked, and what the blocked and the allowed made by their horizon."""
    until = (asked.until or datetime.now(UTC)).astimezone(UTC)
    since = (asked.since or until - USUAL_PAST).astimezone(UTC)
    if since >= until:
        raise Unprocessable("since: must lie before until")
    async with state.engine.connect() as connection:
        return await shadow_of(connection, since=since, until=until, ticker=asked.ticker)
