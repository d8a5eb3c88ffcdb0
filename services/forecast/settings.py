"""What the environment says about the forecast loop."""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from libs.settings import Settings

LENGTHS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
HORIZON = re.compile(r"([1-9][0-9]{0,2})([dhm])")
FEED = re.compile(r"replay|file:.+|ccxt:[a-z0-9_]+")


def split_tickers(value: object) -> object:
    """Read `AAPL, MSFT`; `all` and an empty value mean every ticker the feed has."""
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    return () if names == ("all",) else names


Tickers = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_tickers)]


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far ahead: `steps` bars, each `length` long on exchanges (`unit` in ccxt's words, such as `1d`)."""

    steps: int
    unit: str
    length: timedelta


class ForecastSettings(Settings):
    """The feed, its pace and its horizon."""

    model_config = SettingsConfigDict(env_prefix="FORECAST_")

    feed: str = Field(
        "replay", description="Where bars come from: replay (bundled), file:PATH (CSV, Parquet), ccxt:EXCHANGE."
    )
    tickers: Tickers = Field((), description="Comma-separated tickers to follow; all of the feed's where unset.")
    interval_s: float = Field(
        5, gt=0, allow_inf_nan=False, description="Seconds between two ticks, or two looks at a live feed."
    )
    horizon: str = Field("1d", description="How many bars ahead to forecast: Nd, or Nh and Nm for shorter bars.")
    calendar: str = Field("bars", description="Trading calendar: bars (only the data), 24/7, or one such as XNYS.")
    exchange_url: str | None = Field(
        None, description="Address that replaces scheme and host of a ccxt exchange's own."
    )

    @field_validator("feed")
    @classmethod
    def must_be_known(cls, value: str) -> str:
        """Refuse a feed of no known kind."""
        if FEED.fullmatch(value) is None:
            raise ValueError("must be replay, file:PATH or ccxt:EXCHANGE")
        return value

    @field_validator("horizon")
    @classmethod
    def must_be_bars(cls, value: str) -> str:
        """Refuse what is not a number of bars."""
        if HORIZON.fullmatch(value) is None:
            raise ValueError("must be a number of bars such as 1d, 5d or 4h")
        return value

    @property
    def parsed_horizon(self) -> Horizon:
        """The horizon as bars and their length."""
        found = HORIZON.fullmatch(self.horizon)
        assert found is not None  # noqa: S101 - the validator saw to it
        return Horizon(int(found[1]), f"1{found[2]}", LENGTHS[found[2]])

    @property
    def file(self) -> Path:
        """The path of a `file:` feed."""
        return Path(self.feed.partition(":")[2])


class DecisionSettings(Settings):
    """How long a decision may gate an order."""

    llm_decision_ttl_s: float = Field(
        900,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for which a judgement may gate orders; forecasts are judged again at half of it.",
    )
