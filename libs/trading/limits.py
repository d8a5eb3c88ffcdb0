"""What an order may be at most, in every mode, and what a decision must be to authorise one."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from libs.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits: notionals and losses in the account's currency, ages in seconds, the collar in per cent.

    `restricted_tickers` are `bare`.
    """

    max_order_notional: Decimal = Decimal(10_000)
    max_order_qty: Decimal = Decimal(1_000)
    max_orders_per_min: int = 30
    price_collar_pct: Decimal = Decimal(5)
    max_price_age_s: float = 172_800
    max_position_notional: Decimal = Decimal(50_000)
    max_gross_notional: Decimal = Decimal(200_000)
    max_daily_loss: Decimal = Decimal(5_000)
    restricted_tickers: frozenset[str] = frozenset()


DEFAULTS = Limits()


def bare(ticker: str) -> str:
    """A ticker by its letters alone: brokers write pairs as BTC/USD and as BTCUSD."""
    return ticker.upper().replace("/", "")


@dataclass(frozen=True, slots=True)
class Terms:
    """When a decision authorises: judged at most `ttl_s` ago, by `model`.

    `allow_without` lets entries pass that have no valid decision (none, stale, invalid, model away); a deny still
    denies.
    """

    model: str
    ttl_s: float = 900
    allow_without: bool = False


class GateSettings(Settings):
    """Hard limits of orders, in every mode, and what the gate does without a valid decision."""

    max_order_notional: Decimal = Field(
        default=DEFAULTS.max_order_notional, ge=0, allow_inf_nan=False, description="Most money of one order."
    )
    max_order_qty: Decimal = Field(
        default=DEFAULTS.max_order_qty, ge=0, allow_inf_nan=False, description="Largest quantity of one order."
    )
    max_orders_per_min: int = Field(
        default=DEFAULTS.max_orders_per_min, ge=0, description="Most entries authorised within any minute."
    )
    price_collar_pct: Decimal = Field(
        default=DEFAULTS.price_collar_pct,
        gt=0,
        lt=100,
        allow_inf_nan=False,
        description="Most per cent a price may lie away from our last one; entries leave as limit orders there.",
    )
    max_price_age_s: float = Field(
        default=DEFAULTS.max_price_age_s,
        gt=0,
        allow_inf_nan=False,
        description="Most seconds since the feed delivered or confirmed our last price.",
    )
    max_position_notional: Decimal = Field(
        default=DEFAULTS.max_position_notional, ge=0, allow_inf_nan=False, description="Most money in one ticker."
    )
    max_gross_notional: Decimal = Field(
        default=DEFAULTS.max_gross_notional, ge=0, allow_inf_nan=False, description="Most money in all positions."
    )
    max_daily_loss: Decimal = Field(
        default=DEFAULTS.max_daily_loss,
        ge=0,
        allow_inf_nan=False,
        description="Loss since the last trading day from which on nothing is entered.",
    )
    restricted_tickers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Tickers that are never entered, comma-separated."
    )
    llm_gate_on_error: Literal["deny", "allow"] = Field(
        default="deny", description="What an entry gets without a valid decision; a verdict not stored refuses anyway."
    )
    llm_decision_ttl_s: float = Field(
        default=900,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for which a judgement may gate orders; forecasts are judged again at half of it.",
    )

    @field_validator("restricted_tickers", mode="before")
    @classmethod
    def split_words(cls, value: object) -> object:
        """Read a comma-separated list."""
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @property
    def limits(self) -> Limits:
        """The hard limits."""
        return Limits(
            max_order_notional=self.max_order_notional,
            max_order_qty=self.max_order_qty,
            max_orders_per_min=self.max_orders_per_min,
            price_collar_pct=self.price_collar_pct,
            max_price_age_s=self.max_price_age_s,
            max_position_notional=self.max_position_notional,
            max_gross_notional=self.max_gross_notional,
            max_daily_loss=self.max_daily_loss,
            restricted_tickers=frozenset(bare(ticker) for ticker in self.restricted_tickers),
        )

    def terms(self, *, model: str) -> Terms:
        """What a decision must be, given the model that may decide."""
        return Terms(model=model, ttl_s=self.llm_decision_ttl_s, allow_without=self.llm_gate_on_error == "allow")
