"""What others know: posts, ratings and facts, in batches that are stored whole or not at all.

An item is known by its source and its id there; what is known already is counted and left as it is.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)
from sqlalchemy import TextClause

from libs.judgement.thresholds import MaxAgeDays
from libs.keys import GuardedRoute, require
from services.api import repository
from services.api.deps import Writer

MAX_ITEMS = 1000
MAX_CLOCK_LEAD = timedelta(days=1)

router = APIRouter(prefix="/ingest", dependencies=[Depends(require("ingest"))], route_class=GuardedRoute)


def _no_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("holds a NUL character, which Postgres cannot store")
    return value


def _written_time(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("give the time as ISO 8601 text with its zone")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


def _not_ahead(value: datetime) -> datetime:
    if value > datetime.now(UTC) + MAX_CLOCK_LEAD:
        raise ValueError("lies more than a day in the future")
    return value


Line = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True), AfterValidator(_no_nul)]
Prose = Annotated[str, StringConstraints(min_length=1, max_length=10_000), AfterValidator(_no_nul)]
Ticker = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-/:=^]{0,31}$", to_upper=True)]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_time), AfterValidator(_not_ahead)]


class Item(BaseModel):
    """What every item has. Unknown fields are refused: a misspelt one would be lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Line
    ticker: Ticker


class SocialMessage(Item):
    """A post. `ts` is when it was made."""

    external_id: Line
    ts: Moment
    handle: Line
    text: Prose


class AnalystRating(Item):
    """A rating. `target` is a price; `ts` is when it was published."""

    external_id: Line
    ts: Moment
    provider: Line
    firm: Line
    analyst: Line
    action: Line
    rating: Line
    target: float | None = Field(default=None, ge=0, allow_inf_nan=False)


READ_BY_RULES = frozenset(MaxAgeDays.model_fields)
CHOICES = {"borrow": ("available", "none"), "macro_regime": ("risk_on", "risk_off", "neutral")}


class Fact(Item):
    """Something known about a ticker from `as_of` on. Without an `external_id` it is known by ticker, name and time."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    value: Line | bool | Annotated[float, Field(allow_inf_nan=False)]
    as_of: Moment
    external_id: Line = ""

    @model_validator(mode="after")
    def value_fits_name(self) -> "Fact":
        """The rules read these names, so their values are checked here rather than misread there."""
        if self.name == "earnings_date":
            try:
                date.fromisoformat(str(self.value))
            except ValueError as error:
                raise ValueError("the value of earnings_date must be a date such as 2026-05-01") from error
        elif self.name in CHOICES and self.value not in CHOICES[self.name]:
            raise ValueError(f"the value of {self.name} must be one of: {', '.join(CHOICES[self.name])}")
        return self

    def row(self) -> dict[str, Any]:
        """The fact with its id filled in."""
        known_by = self.external_id or f"{self.ticker}|{self.name}|{self.as_of.astimezone(UTC).isoformat()}"
        return {**self.model_dump(mode="json"), "external_id": known_by}


class Stored(BaseModel):
    """What became of a batch: `known` items were there already, and stay as they were."""

    received: int
    stored: int
    known: int


class StoredFacts(Stored):
    """What became of a batch of facts. `warnings` names facts that are kept and that no rule reads, each once."""

    warnings: list[str]


SocialBatch = Annotated[list[SocialMessage], Body(min_length=1, max_length=MAX_ITEMS)]
RatingBatch = Annotated[list[AnalystRating], Body(min_length=1, max_length=MAX_ITEMS)]
FactBatch = Annotated[list[Fact], Body(min_length=1, max_length=MAX_ITEMS)]
_ROWS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


async def _store(writer: Writer, statement: TextClause, rows: list[dict[str, Any]]) -> Stored:
    stored = await repository.insert(writer, statement, _ROWS.dump_json(rows).decode())
    return Stored(received=len(rows), stored=stored, known=len(rows) - stored)


@router.post("/social")
async def social(writer: Writer, batch: SocialBatch) -> Stored:
    """Store posts."""
    return await _store(writer, repository.INSERT_SOCIAL, [item.model_dump(mode="json") for item in batch])


@router.post("/ratings")
async def ratings(writer: Writer, batch: RatingBatch) -> Stored:
    """Store ratings."""
    return await _store(writer, repository.INSERT_RATINGS, [item.model_dump(mode="json") for item in batch])


@router.post("/facts")
async def facts(writer: Writer, batch: FactBatch) -> StoredFacts:
    """Store facts."""
    stored = await _store(writer, repository.INSERT_FACTS, [item.row() for item in batch])
    unread = dict.fromkeys(item.name for item in batch if item.name not in READ_BY_RULES)
    return StoredFacts(**stored.model_dump(), warnings=[f"{name}: no rule reads this name" for name in unread])
