"""What was said about a ticker lately."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.json_numbers import Number
from libs.keys import require
from services.analytics import repository
from services.analytics.summary import Summaries

MOST_SHOWN = 50

router = APIRouter(prefix="/analytics", dependencies=[Depends(require("read"))])


@dataclass(frozen=True, slots=True)
class AnalyticsState:
    """Everything that lives as long as the process."""

    engine: AsyncEngine
    summaries: Summaries


def get_state(request: Request) -> AnalyticsState:
    """The state `create_app` was given."""
    return request.app.state.analytics


class Post(BaseModel):
    """A post; `ts` is when it was made."""

    ts: datetime
    source: str
    handle: str
    text: str


class Rating(BaseModel):
    """A rating; `target` is a price."""

    ts: datetime
    provider: str
    firm: str
    analyst: str
    action: str
    rating: str
    target: Number | None

    def line(self) -> str:
        """The rating in words, for the summary."""
        target = "" if self.target is None else f", target {self.target:g}"
        return f"{self.ts:%Y-%m-%d} {self.firm} ({self.provider}): {self.action} {self.rating}{target}"


class Recent(BaseModel):
    """The newest posts and ratings, newest first; `summary` is "" without an answer of the model in time."""

    social: Sequence[Post]
    ratings: Sequence[Rating]
    summary: str


TICKER = r"^[A-Za-z0-9][A-Za-z0-9.\-/:=^]{0,31}$"
Ticker = Annotated[str, StringConstraints(pattern=TICKER, to_upper=True)]


class RecentQuery(BaseModel):
    """What is asked for. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    ticker: Ticker


@router.get("/recent")
async def recent(
    state: Annotated[AnalyticsState, Depends(get_state)], asked: Annotated[RecentQuery, Query()]
) -> Recent:
    """Posts and ratings of a ticker, and a summary if there is one in time."""
    ticker = asked.ticker
    async with state.engine.connect() as connection:  # given back before the model is asked
        posts = await repository.recent_social(connection, ticker, MOST_SHOWN)
        rated = await repository.recent_ratings(connection, ticker, MOST_SHOWN)
    social = [Post.model_validate(row) for row in posts]
    ratings = [Rating.model_validate(row) for row in rated]
    summary = await state.summaries.read(
        ticker, messages=[post.text for post in social], ratings=[rating.line() for rating in ratings]
    )
    return Recent(social=social, ratings=ratings, summary=summary)
