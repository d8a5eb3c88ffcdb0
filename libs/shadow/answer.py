"""The report as it is answered and kept."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.json_numbers import Number
from libs.shadow.entries import entries
from libs.shadow.report import Report, report

USUAL_PAST = timedelta(days=30)
"""How far back a report looks where nobody says."""


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
    """The allowed beside the blocked; `difference` is allowed less blocked, null where either has too few outcomes."""

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


async def shadow_of(connection: AsyncConnection, *, since: datetime, until: datetime, ticker: str | None) -> Shadow:
    """The report on the verdicts from `since` until before `until`, of one ticker or of all."""
    rows = await entries(connection, since=since, until=until, ticker=ticker)
    made = await asyncio.to_thread(report, rows)
    return _answer(made, since=since, until=until, ticker=ticker)


def _answer(made: Report, *, since: datetime, until: datetime, ticker: str | None) -> Shadow:
    return Shadow(
        since=since,
        until=until,
        ticker=ticker,
        summary=made.summary,
        enough_data=made.enough_data,
        entries=made.total,
        refused_anyway=made.refused_anyway,
        **_fields(Split.model_validate(made.whole)),
        versions=[
            VersionSplit(prompt_version=version, arm=arm, **_fields(Split.model_validate(split)))
            for (version, arm), split in made.by_version.items()
        ],
        reasons=[
            ReasonGroup(reason=reason, **_fields(Group.model_validate(group)))
            for reason, group in made.by_reason.items()
        ],
    )


def _fields(model: BaseModel) -> dict[str, Any]:
    """The fields of a model, for one that has more of them."""
    return {name: getattr(model, name) for name in type(model).model_fields}
