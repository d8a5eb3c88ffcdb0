"""What goes into a judgement and what comes out, independent of prompts and storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from libs.llm.types import Answer

Side: TypeAlias = Literal["buy", "sell", "none"]


@dataclass(frozen=True, slots=True)
class PriceForecast:
    """Where the price stands and where a forecast sees it at the horizon: mean and the ends of its interval."""

    last_price: float
    mean: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Signal:
    """What the forecast says to do. Prices in the quote currency, `expected_return` as a fraction."""

    side: Side
    last_price: float
    mean: float
    lower: float
    upper: float
    expected_return: float


@dataclass(frozen=True, slots=True)
class Fact:
    """Something known about a ticker from outside: an earnings date, borrow, a macro regime."""

    name: str
    value: object
    as_of: datetime
    source: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything a judgement may see, fixed at market time `as_of`.

    `factors` are z-scores. `liquidity_usd` is the median daily dollar volume, `coverage_pct` the share of expected
    bars that are present (0 to 100); both None when they cannot be known. `headlines` are untrusted text.
    `facts` holds the latest fact per name that was known at `as_of`; `earnings_in_days` counts trading days until the
    earnings date fact, by the feed's calendar, None when no date is known.
    """

    ticker: str
    horizon: str
    as_of: datetime
    signal: Signal
    factors: Mapping[str, float]
    liquidity_usd: float | None
    coverage_pct: float | None
    headlines: tuple[str, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict[str, Fact])
    earnings_in_days: int | None = None


@dataclass(frozen=True, slots=True)
class RulesVerdict:
    """What the rules in code say. `reasons` are codes such as `COVERAGE` or `UNKNOWN_BORROW`; empty when allowed."""

    allow: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy answer that validated strictly."""

    allow: bool
    reasons: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One forecast, judged: the two answers as they came, the decision if the policy answer was valid, the rules.

    An answer is None where no call came about; its error then says why. `ungrounded_numbers` are the numbers of the
    rationale that stand in none of the inputs, as written.
    """

    inputs: Inputs
    rationale: Answer | None
    policy: Answer | None
    decision: Decision | None
    rules: RulesVerdict
    ungrounded_numbers: tuple[str, ...] = ()
    rationale_error: str | None = None
    policy_error: str | None = None
