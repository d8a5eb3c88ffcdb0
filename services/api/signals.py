"""The latest forecasts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from libs.json_numbers import JsonValue, Number
from libs.keys import require
from libs.problems import Unprocessable
from services.api import repository
from services.api.deps import Reader

MAX_TICKERS = 2000

router = APIRouter(prefix="/signals", dependencies=[Depends(require("read"))])


class Signal(BaseModel):
    """One forecast: prices at the horizon, `as_of` in market time, `ts` when it was written; `llm` as stored."""

    as_of: datetime
    ts: datetime
    ticker: str
    horizon: str
    model: str
    mean: Number
    lower: Number
    upper: Number
    llm: JsonValue


@router.get("/latest")
async def latest(
    reader: Reader,
    tickers: Annotated[str | None, Query(description="comma-separated; all where left out", max_length=65536)] = None,
    horizon: Annotated[str | None, Query(max_length=32)] = None,
) -> Sequence[Signal]:
    """The latest forecast per ticker and horizon, of the feed that wrote last."""
    words = None if tickers is None else {word.strip() for word in tickers.split(",") if word.strip()}
    if words is not None and len(words) > MAX_TICKERS:
        raise Unprocessable(f"tickers: at most {MAX_TICKERS} at once")
    # In capitals, and as written: some exchanges have small letters in their names.
    wanted = None if words is None else sorted(words | {word.upper() for word in words})
    rows = await repository.latest_signals(reader, tickers=wanted, horizon=horizon)
    return [Signal.model_validate(row) for row in rows]
