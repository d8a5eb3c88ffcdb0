"""From bars, facts and headlines to `Inputs`, and from `Inputs` to the variables of the prompts.

Nothing from after `as_of` gets in, whoever hands it over: later bars and facts are left out here.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from math import ceil, floor, isfinite

from libs.calendar import Calendar, utc_day
from libs.judgement.bars import Bars, coverage_pct, liquidity_usd
from libs.judgement.factors import factors
from libs.judgement.notes import market_notes
from libs.judgement.rules import Rules, factor_dispersion
from libs.judgement.types import Fact, Inputs, PriceForecast, Side, Signal

MAX_HEADLINES = 12
MAX_HEADLINE_CHARS = 400
PRICE_DIGITS = 6


def build_inputs(
    ticker: str,
    bars: Bars,
    *,
    horizon: str,
    as_of: datetime,
    forecast: PriceForecast,
    rules: Rules,
    calendar: Calendar,
    facts: Iterable[Fact] = (),
    headlines: Sequence[str] = (),
    feed_days: Iterable[date] = (),
) -> Inputs:
    """What is known about a ticker at market time `as_of`.

    `headlines` are ingested texts, the most telling first; where there are none, notes on the bars stand in.
    `feed_days` are the days on which any ticker of the feed had a bar: coverage is measured against them where the
    calendar cannot say. Same arguments, same inputs. Raises `ValueError` for a naive moment or a forecast that is no
    price.
    """
    if as_of.tzinfo is None:
        raise ValueError("as_of must be timezone-aware")
    as_of = as_of.astimezone(UTC)
    usable = bars.until(as_of)
    known = latest_facts(facts, as_of)
    return Inputs(
        ticker=ticker,
        horizon=horizon,
        as_of=as_of,
        signal=signal_of(forecast, min_expected_return_pct=rules.thresholds.min_expected_return_pct),
        factors=factors(usable),
        liquidity_usd=liquidity_usd(usable),
        coverage_pct=coverage_pct(usable, as_of, calendar=calendar, feed_days=tuple(feed_days)),
        headlines=bounded(headlines) or market_notes(ticker, usable),
        facts=known,
        earnings_in_days=earnings_in_days(known.get("earnings_date"), as_of, calendar),
    )


def signal_of(forecast: PriceForecast, *, min_expected_return_pct: float) -> Signal:
    """The forecast with its expected return and the side that follows: none inside the band around zero."""
    prices = (forecast.last_price, forecast.mean, forecast.lower, forecast.upper)
    if not all(isfinite(price) and price > 0 for price in prices):
        raise ValueError(f"a forecast's prices must be finite and positive, not {prices}")
    expected = forecast.mean / forecast.last_price - 1
    if not isfinite(expected):
        raise ValueError(f"no return can be taken from {forecast.last_price} to {forecast.mean}")
    return Signal(
        side=side_of(expected, min_expected_return_pct=min_expected_return_pct),
        last_price=forecast.last_price,
        mean=forecast.mean,
        lower=forecast.lower,
        upper=forecast.upper,
        expected_return=expected,
    )


def side_of(expected_return: float, *, min_expected_return_pct: float) -> Side:
    """Buy or sell from the threshold on; a return of exactly zero has no side."""
    if expected_return == 0 or abs(expected_return) * 100 < min_expected_return_pct:
        return "none"
    return "buy" if expected_return > 0 else "sell"


def latest_facts(facts: Iterable[Fact], as_of: datetime) -> dict[str, Fact]:
    """The latest fact per name that was known at `as_of`; of two from the same moment, the later in order."""
    latest: dict[str, Fact] = {}
    for fact in facts:
        if fact.as_of.tzinfo is None:
            raise ValueError(f"fact {fact.name}: as_of must be timezone-aware")
        before = latest.get(fact.name)
        if fact.as_of <= as_of and (before is None or fact.as_of >= before.as_of):
            latest[fact.name] = fact
    return latest


def earnings_in_days(fact: Fact | None, as_of: datetime, calendar: Calendar) -> int | None:
    """Trading days until the announcement, 0 on its day; None without a date, with a past one, or off the calendar.

    A past date says nothing about the next announcement.
    """
    day = None if fact is None else day_of(fact.value)
    days = None if day is None else calendar.sessions_between(as_of, day)
    if day is None or days is None or day < utc_day(as_of):
        return None
    return days


def day_of(value: object) -> date | None:
    """The day an ISO date or moment names (its UTC day), or None."""
    if not isinstance(value, str):
        return None
    try:
        return utc_day(datetime.fromisoformat(value))
    except (ValueError, OverflowError):
        return None


def bounded(headlines: Sequence[str]) -> tuple[str, ...]:
    """The first dozen texts, each once and cut to 400 characters, without blank ones. Still untrusted."""
    texts = (text.strip()[:MAX_HEADLINE_CHARS] for text in headlines)
    return tuple(dict.fromkeys(text for text in texts if text))[:MAX_HEADLINES]


def prompt_inputs(inputs: Inputs, rules: Rules, *, feed: str = "") -> dict[str, object]:
    """The variables of the prompts `rationale` and `policy`, rounded to what a reader needs.

    Facts are shown as the rules see them: a stale one is null. Coverage and liquidity are rounded down and dispersion
    up, so that what is shown never passes a rule that the number itself breaks. Where `feed` goes without some rules,
    `rules.off` names them, so that the model is not asked to deny what the code lets pass.
    """
    signal, known, spread = inputs.signal, rules.known(inputs), factor_dispersion(inputs)
    return {
        "ticker": inputs.ticker,
        "horizon": inputs.horizon,
        "as_of": inputs.as_of.date().isoformat(),
        "side": signal.side,
        "last_price": rounded_price(signal.last_price),
        "mean": rounded_price(signal.mean),
        "lower": rounded_price(signal.lower),
        "upper": rounded_price(signal.upper),
        "expected_return_pct": round(signal.expected_return * 100, 2),
        "factors": {name: round(score, 2) for name, score in sorted(inputs.factors.items())},
        "factor_dispersion": None if spread is None else ceil(spread * 100) / 100,
        "liquidity_usd": None if inputs.liquidity_usd is None else floor(inputs.liquidity_usd),
        "coverage_pct": None if inputs.coverage_pct is None else floor(inputs.coverage_pct * 10) / 10,
        "earnings_in_days": known.earnings_in_days,
        "borrow": known.borrow,
        "macro_regime": known.macro_regime,
        "rules": rules_shown(rules, feed),
        "headlines": list(inputs.headlines),
    }


def rules_shown(rules: Rules, feed: str) -> dict[str, object]:
    """The thresholds that prompts state, and the names of the rules the feed goes without, if any."""
    thresholds, off = rules.thresholds, rules.switched_off(feed)
    return {
        "earnings_days": thresholds.earnings_days,
        "max_factor_dispersion": thresholds.max_factor_dispersion,
        "min_coverage_pct": whole_if_whole(thresholds.min_coverage_pct),
        "min_liquidity_usd": whole_if_whole(thresholds.min_liquidity_usd),
        **({"off": list(off)} if off else {}),
    }


def rounded_price(price: float) -> float:
    """A price to six significant digits."""
    return float(f"{price:.{PRICE_DIGITS}g}")


def whole_if_whole(value: float) -> float:
    """85 rather than 85.0: fewer tokens, the same number."""
    return int(value) if value.is_integer() else value
