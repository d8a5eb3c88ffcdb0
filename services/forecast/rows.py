"""What the forecast loop writes to Postgres and reads back, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from libs.exposures.record import Assigned, Noted
from libs.judgement.types import Fact, PriceForecast
from services.forecast.feed.types import Bar
from services.forecast.numbers import Numbers

FORECAST_NAMESPACE = UUID("7a1d5b5e-6f0b-4d0c-9d39-0d0f6b6a2f51")


@dataclass(frozen=True, slots=True)
class Known:
    """What Postgres knows about one ticker at a moment."""

    facts: Mapping[str, Fact] = field(default_factory=dict[str, Fact])
    headlines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """One forecast to store: a series, a moment, the numbers, and what stands in `features.llm` until it is judged.

    A decision on it authorises nothing after `ends_at`, where that was still to come when it was written. `assigned`
    are the arms that running experiments gave it.
    """

    id: UUID
    ticker: str
    last_price: float
    numbers: Numbers
    due_at: datetime | None
    llm: Mapping[str, Any]
    ends_at: datetime | None = None
    assigned: tuple[Assigned, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """A forecast as it stands in the database; `age_s` since it was judged, None where it was not."""

    id: UUID
    ticker: str
    prices: PriceForecast
    age_s: float | None
    llm: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JudgementRow:
    """What to write to one stored forecast, judged `age_s` ago; `complete` is False where it was not judged.

    `noted` is what goes to its exposures, if that is the first there is.
    """

    id: UUID
    as_of: datetime
    llm: Mapping[str, Any]
    complete: bool
    age_s: float = 0.0
    noted: tuple[Noted, ...] = ()


def forecast_id(*, feed: str, ticker: str, horizon: str, model: str, as_of: datetime) -> UUID:
    """The id of a forecast, a function of its identity, so that storing it twice is storing it once."""
    return uuid5(FORECAST_NAMESPACE, "\n".join((feed, ticker, horizon, model, as_of.isoformat())))


def bar_row(ticker: str, bar: Bar) -> dict[str, object]:
    """A bar as `STORE_BARS` reads it."""
    return {
        "ticker": ticker,
        "open": bar.open,
        "high": bar.high,
        "low": bar.low,
        "close": bar.close,
        "volume": bar.volume,
    }


def forecast_row(forecast: Forecast) -> dict[str, object]:
    """A forecast as `STORE_FORECASTS` reads it."""
    return {
        "ticker": forecast.ticker,
        "model": forecast.numbers.model,
        "id": str(forecast.id),
        "due_at": None if forecast.due_at is None else forecast.due_at.isoformat(),
        "last_price": forecast.last_price,
        "mean": forecast.numbers.mean,
        "lower": forecast.numbers.lower,
        "upper": forecast.numbers.upper,
        "features": {"llm": forecast.llm}
        | ({} if forecast.ends_at is None else {"ends_at": forecast.ends_at.isoformat()}),
    }
