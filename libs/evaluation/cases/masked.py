"""The masked twin: the same case with nothing left that a model could remember it by.

Where a model answers a case and its masked twin differently, it answered from memory, not from what it was shown.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from libs.evaluation.cases.case import CaseError, EvalCase, Moments, Realised
from libs.evaluation.cases.dataset import CaseFile
from libs.evaluation.cases.disguise import NAMES, YEAR_DAYS, Disguise, invented, names_pattern, words_of
from libs.evaluation.cases.document import LARGEST_PRICE
from libs.judgement.rules import borrow_of, regime_of
from libs.judgement.types import Fact, Signal

COMPANY: Final = "company"
"""The fact whose value names the ticker's company."""
FEWEST_YEARS, MOST_YEARS = 5, 15
FACTORS: Final = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
"""Powers of two, so that every ratio of two prices stays what it was to the last bit."""
WEEK_DAYS = 7


def masked(case: EvalCase, *, seed: int) -> EvalCase:
    """The masked twin of a case.

    The ticker is an invented one, the same for every case of that ticker; all dates are moved by one span of whole
    weeks, the same for every case, so that weekdays, seasons and the ages of facts stay; prices are multiplied by one
    factor per ticker; texts are rewritten accordingly. Factors, liquidity, coverage, expected return, target, outcome
    and what the rules say stay as they are. Same case and seed, same twin.

    Raises `CaseError` for a case that is a twin already, and for dates that cannot be moved.
    """
    if case.twin:
        raise CaseError("twin", f"case {case.id!r} is a twin already")
    inputs = case.inputs
    disguise = disguise_of(case, seed=seed)
    signal, factor = inputs.signal, disguise.factor
    return replace(
        case,
        id=f"{case.id}~masked",
        as_of=case.as_of + disguise.span,
        inputs=replace(
            inputs,
            ticker=disguise.invented,
            as_of=inputs.as_of + disguise.span,
            signal=Signal(
                side=signal.side,
                last_price=signal.last_price * factor,
                mean=signal.mean * factor,
                lower=signal.lower * factor,
                upper=signal.upper * factor,
                expected_return=signal.expected_return,
            ),
            headlines=tuple(disguise.headline(headline) for headline in inputs.headlines),
            facts={name: masked_fact(fact, disguise) for name, fact in inputs.facts.items()},
        ),
        realised=None if case.realised is None else moved_outcome(case.realised, disguise.span),
        twin="masked",
        twin_of=case.id,
        moments=moved_moments(case.moments, disguise.span),
    )


def masked_twins(cases: CaseFile, *, seed: int) -> Iterator[EvalCase]:
    """The masked twin of every case of a file that is no twin and has no such twin there yet."""
    there = {case.twin_of for case in cases if case.twin == "masked"}
    return (masked(case, seed=seed) for case in cases if not case.twin and case.id not in there)


def disguise_of(case: EvalCase, *, seed: int) -> Disguise:
    """What hides a case."""
    inputs = case.inputs
    company = inputs.facts.get(COMPANY)
    told = company.value if company is not None and isinstance(company.value, str) else ""
    return Disguise(
        ticker=inputs.ticker,
        invented=invented(inputs.ticker, seed),
        pattern=names_pattern(words_of(inputs.ticker), (told.strip(), *NAMES.get(inputs.ticker, ()))),
        span=span_of(case, seed=seed),
        factor=factor_of(inputs.signal, inputs.ticker, seed=seed),
        as_of=inputs.as_of,
        last_price=inputs.signal.last_price,
    )


def span_of(case: EvalCase, *, seed: int) -> timedelta:
    """Some years back, in whole weeks; forward where the calendar does not reach back so far. Raises `CaseError`."""
    years = random.Random(f"{seed}/span").randint(FEWEST_YEARS, MOST_YEARS)  # noqa: S311 - a disguise, not a secret
    span = timedelta(weeks=round(years * YEAR_DAYS / WEEK_DAYS))
    moments = list(moments_of(case))
    for one in (-span, span):
        if all(can_move(moment, one) for moment in moments):
            return one
    raise CaseError("as_of", f"the dates of case {case.id!r} lie too far apart to be moved by {years} years")


def moments_of(case: EvalCase) -> Iterable[datetime]:
    """Every moment of a case."""
    yield case.as_of
    yield from (fact.as_of for fact in case.inputs.facts.values())
    for moment in case.moments.values():
        yield from (moment,) if isinstance(moment, datetime) else moment
    if case.realised is not None:
        yield case.realised.at


def can_move(moment: datetime, span: timedelta) -> bool:
    """Whether a moment moved so stays within the years that can be written."""
    try:
        _ = moment + span
    except OverflowError:
        return False
    return True


def factor_of(signal: Signal, ticker: str, *, seed: int) -> float:
    """The factor on a ticker's prices: another one where the first would lose digits or overflow."""
    factors = list(FACTORS)
    random.Random(f"{seed}/factor/{ticker}").shuffle(factors)  # noqa: S311 - a disguise, not a secret
    prices = (signal.last_price, signal.mean, signal.lower, signal.upper)
    return next((one for one in factors if all(exact(price, one) for price in prices)), 1.0)


def exact(price: float, factor: float) -> bool:
    """Whether a price times the factor loses nothing, and is still a price."""
    scaled = price * factor
    return 0 < scaled <= LARGEST_PRICE and scaled / factor == price


def masked_fact(fact: Fact, disguise: Disguise) -> Fact:
    """A fact of the same age. The words that the rules know stay: they say nothing about the ticker."""
    known = borrow_of(fact.value) is not None or regime_of(fact.value) is not None
    value = fact.value if known else disguise.value(fact.value)
    return Fact(name=fact.name, value=value, as_of=fact.as_of + disguise.span, source=disguise.text(fact.source))


def moved_outcome(realised: Realised, span: timedelta) -> Realised:
    """The same outcome at another time."""
    return Realised(realised.change, realised.at + span)


def moved_moments(moments: Moments, span: timedelta) -> Moments:
    """The same moments at other times."""
    moved: Mapping[str, datetime | tuple[datetime, ...]] = {
        name: moment + span if isinstance(moment, datetime) else tuple(one + span for one in moment)
        for name, moment in moments.items()
    }
    return moved
