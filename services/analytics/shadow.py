"""The question that decides whether shadow is lifted: what would have been blocked, and what did it make."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import RowMapping

from libs.json_numbers import Number
from libs.keys import require
from libs.problems import Unprocessable
from services.analytics import repository, shadow_report
from services.analytics.recent import TICKER, AnalyticsState, get_state
from services.analytics.shadow_report import Report, Sums

USUAL_PAST = timedelta(days=30)
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

router = APIRouter(prefix="/analytics", dependencies=[Depends(require("read"))])


Moment = Annotated[AwareDatetime, Field(ge=EARLIEST, le=LATEST)]


class ShadowQuery(BaseModel):
    """What is asked for. Unknown names are refused. Times are those of the verdicts, not of the market."""

    model_config = ConfigDict(extra="forbid")

    since: Annotated[Moment | None, Field(description="30 days before `until` where left out")] = None
    until: Annotated[Moment | None, Field(description="now where left out; itself not included")] = None
    ticker: Annotated[str | None, Field(pattern=TICKER, description="as written, or in capitals")] = None


class Interval(BaseModel):
    """An estimate with its 95 % interval."""

    model_config = ConfigDict(from_attributes=True)

    value: Number
    low: Number
    high: Number


class Group(BaseModel):
    """Entries with the same fate. Returns and rates are fractions, `money` is in the account's currency.

    `waiting` have a forecast whose horizon has not passed; `without_forecast` never get an outcome.
    """

    model_config = ConfigDict(from_attributes=True)

    entries: int
    settled: int
    waiting: int
    without_forecast: int
    market_days: int
    mean_return: Interval | None
    hit_rate: Interval | None
    money: Number


class Split(BaseModel):
    """The allowed beside the blocked; `difference` is allowed less blocked."""

    model_config = ConfigDict(from_attributes=True)

    allowed: Group
    blocked: Group
    difference: Interval | None


class VersionSplit(Split):
    """The same for the decisions of one prompt version under one arm; null where no version was asked."""

    prompt_version: str | None
    arm: str | None


class ReasonGroup(Group):
    """What was denied with a reason. An entry with two reasons counts under both."""

    reason: str


class Shadow(Split):
    """`summary` says it in a sentence. `refused_anyway` are denied in shadow too, and in neither group."""

    since: datetime
    until: datetime
    ticker: str | None
    summary: str
    enough_data: bool
    entries: int
    refused_anyway: int
    versions: Sequence[VersionSplit]
    reasons: Sequence[ReasonGroup]


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
        rows = await repository.entries(connection, since=since, until=until, ticker=asked.ticker)
    made = shadow_report.report([sums(row) for row in rows])
    return answer(made, since=since, until=until, ticker=asked.ticker)


def sums(row: RowMapping) -> Sums:
    """A row of the query as a value."""
    values: dict[str, Any] = {**row, "reasons": tuple(row["reasons"])}
    return Sums(**values)


def answer(made: Report, *, since: datetime, until: datetime, ticker: str | None) -> Shadow:
    """The report as it is answered."""
    return Shadow(
        since=since,
        until=until,
        ticker=ticker,
        summary=made.summary,
        enough_data=made.enough_data,
        entries=made.total,
        refused_anyway=made.refused_anyway,
        **fields(Split.model_validate(made.whole)),
        versions=[
            VersionSplit(prompt_version=version, arm=arm, **fields(Split.model_validate(split)))
            for (version, arm), split in made.by_version.items()
        ],
        reasons=[
            ReasonGroup(reason=reason, **fields(Group.model_validate(group)))
            for reason, group in made.by_reason.items()
        ],
    )


def fields(model: BaseModel) -> dict[str, Any]:
    """The fields of a model, for one that has more of them."""
    return {name: getattr(model, name) for name in type(model).model_fields}
