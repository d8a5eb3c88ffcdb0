"""The latest forecasts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from libs.json_numbers import JsonValue, Number
from libs.keys import require
from libs.problems import Unprocessable
from services.api import repository
from services.api.deps import Reader

MAX_TICKERS = 2000

router = APIRouter(prefix="/signals", dependencies=[Depends(require("read"))])


class Signal(BaseModel):
    """One forecast: prices at the horizon, `as_of` in market time, `ts` when it was written; `llm` as stored.

    `feed` names the run of the feed that it belongs to, such as `replay:1`.
    """

    feed: str
    as_of: datetime
    ts: datetime
    ticker: str
    horizon: str
    model: str
    mean: Number
    lower: Number
    upper: Number
    llm: JsonValue


class SignalQuery(BaseModel):
    """What may be asked for. Unknown names are refused: a misspelt one would give everything in silence."""

    model_config = ConfigDict(extra="forbid")

    tickers: Annotated[str | None, Field(description="comma-separated; all where left out", max_length=65536)] = None
    horizon: Annotated[str | None, Field(max_length=32)] = None


@router.get("/latest")
async def latest(reader: Reader, asked: Annotated[SignalQuery, Query()]) -> Sequence[Signal]:
    """The latest forecast per ticker and horizon, of the feed that wrote last."""
    tickers, horizon = asked.tickers, asked.horizon
    words = None if tickers is None else {word.strip() for word in tickers.split(",") if word.strip()}
    if words is not None and len(words) > MAX_TICKERS:
        raise Unprocessable(f"tickers: at most {MAX_TICKERS} at once")
    # In capitals, and as written: some exchanges have small letters in their names.
    wanted = None if words is None else sorted(words | {word.upper() for word in words})
    rows = await repository.latest_signals(reader, tickers=wanted, horizon=horizon)
    return [Signal.model_validate(row) for row in rows]
