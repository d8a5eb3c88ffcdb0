"""Cases from the bundled bars, made as the forecast loop makes its forecasts. No model is asked, no database is read.

The bars are real. On half of the cases facts are made up by seed, or a part of the history is taken away, so that the
rules in code allow some and deny others, for each of their reasons. `docs/datasets.md` says which.
"""

import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Final

import numpy as np

from libs.calendar import BARS, Calendar, open_calendar
from libs.evaluation.cases.case import EvalCase
from libs.judgement.bars import Bars
from libs.judgement.rules import RULES_FILE, Rules
from libs.judgement.thresholds import Rule
from libs.judgement.types import Fact, Side
from services.forecast.feed.replay import load_bundled
from tools.llm_eval.extract_bars import BarCases, Place

AS_REPLAYED: Final = "replay:eval"
"""The feed of cases that are as the bundled replay makes them: rules that need facts are off."""
WITH_FACTS: Final = "eval"
"""The feed of cases with made facts: every rule holds."""
EXCHANGE: Final = "XNYS"
MADE_BY: Final = "made for evaluation"
SHARE_AS_REPLAYED = 0.5
SHARE_WITHOUT_SIDE = 0.4
KINDS: Final[Mapping[str, float]] = {
    "facts": 0.5,
    "earnings": 0.12,
    "borrow": 0.06,
    "macro": 0.12,
    "unknown": 0.08,
    "holes": 0.06,
    "illiquid": 0.06,
}
"""What is made of a case with facts, and how often: nothing wrong (`facts`), or one thing that a rule denies."""
ALONE_EACH = 2
"""How many of the first cases each rule denies alone, so that few cases have them too."""
ALONE_EVERY = 3
LOOKED_AHEAD = 1_500
HOLES_AMONG = 60
LEAST_HOLES, MOST_HOLES = 12, 25
LEAST_TURNOVER_USD, MOST_TURNOVER_USD = 2e5, 4e6


def bundled_cases(*, n: int, seed: int, rules: Rules | None = None) -> Iterator[EvalCase]:
    """`n` cases from the bundled bars, by time; fewer where there are not as many sessions (some 9,000).

    Same `n` and `seed`, same cases; a smaller `n` gives some of those of a larger one. Without `rules` those of
    `configs/rules.yaml`. Raises `RulesError`, or `FeedError` where the bars are not installed.
    """
    rules = Rules.load(RULES_FILE) if rules is None else rules
    first = islice(arranged(drawn(rules, seed=seed), rules), max(0, n))
    yield from sorted(first, key=lambda case: (case.as_of, case.id))


def arranged(cases: Iterator[EvalCase], rules: Rules) -> Iterator[EvalCase]:
    """The same cases, but early on every third is one that a single rule denies, for each rule in turn.

    Cases that are passed over while one is looked for come next; the search ends where they become too many.
    """
    waiting: list[EvalCase] = []
    for rule in (*Rule,) * ALONE_EACH:
        while len(waiting) < ALONE_EVERY - 1 and (case := next(cases, None)) is not None:
            waiting.append(case)
        yield from waiting[: ALONE_EVERY - 1]
        del waiting[: ALONE_EVERY - 1]
        further = islice(cases, max(0, LOOKED_AHEAD - len(waiting)))
        passed: list[EvalCase] = []
        for case in chain(waiting, further):
            if rules.judge(case.inputs, case.feed).reasons == (rule.value,):
                yield case
                break
            passed.append(case)
        waiting = [*passed, *waiting[len(passed) + 1 :]]
    yield from chain(waiting, cases)


def drawn(rules: Rules, *, seed: int) -> Iterator[EvalCase]:
    """Every case there is, as it is drawn. Of those without a side, which are easily right, some are passed over."""
    maker = BarCases(load_bundled(()), rules, horizon="1d", steps=1)
    places = maker.places()
    random.Random(seed).shuffle(places)  # noqa: S311 - a sample, not a secret
    plain, exchange = open_calendar(BARS), open_calendar(EXCHANGE)
    for place in places:
        chance = random.Random(f"{seed}/{place.name}")  # noqa: S311 - a sample, not a secret
        kept = chance.random() < SHARE_WITHOUT_SIDE
        if chance.random() < SHARE_AS_REPLAYED:
            barred = maker.forecast(place, maker.history(place))
            case = maker.case(barred, feed=AS_REPLAYED, calendar=plain)
        else:
            case = with_facts(maker, place, exchange, chance=chance)
        if kept or case.inputs.signal.side != "none":
            yield case


def with_facts(maker: BarCases, place: Place, calendar: Calendar, *, chance: random.Random) -> EvalCase:
    """A case that every rule judges: with facts that let it pass, or with one thing wrong."""
    kind = chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
    history = maker.history(place)
    if kind == "holes":
        history = with_holes(history, chance)
    elif kind == "illiquid":
        history = hardly_traded(history, chance)
    barred = maker.forecast(place, history)
    if kind == "borrow" and barred.side != "sell":
        kind = "macro"  # a buy needs no borrow
    facts = made_facts(kind, place.as_of, side=barred.side, calendar=calendar, chance=chance)
    return maker.case(barred, feed=WITH_FACTS, calendar=calendar, name=f"{place.name}-{kind}", facts=facts)


def made_facts(
    kind: str, as_of: datetime, *, side: Side, calendar: Calendar, chance: random.Random
) -> tuple[Fact, ...]:
    """Facts that every rule lets pass, but for the one that `kind` names; `unknown` leaves one out or makes it old."""
    sessions = chance.randint(0, 3) if kind == "earnings" else chance.randint(6, 60)
    announced = calendar.add_sessions(as_of, sessions) or as_of + timedelta(days=2 * sessions)
    against, along = ("risk_off", "risk_on") if side == "buy" else ("risk_on", "risk_off")
    values = {
        "earnings_date": (announced.date().isoformat(), chance.uniform(1, 60)),
        "borrow": ("none" if kind == "borrow" else "available", chance.uniform(0, 2)),
        "macro_regime": (against if kind == "macro" else chance.choice((along, "neutral")), chance.uniform(0, 4)),
    }
    if kind == "unknown":
        name = chance.choice([name for name in values if name != "borrow" or side == "sell"])
        if chance.random() < 0.5:
            del values[name]
        else:
            values[name] = (values[name][0], chance.uniform(150, 400))
    return tuple(
        Fact(name=name, value=value, as_of=(as_of - timedelta(days=age)).replace(microsecond=0), source=MADE_BY)
        for name, (value, age) in values.items()
    )


def with_holes(history: Bars, chance: random.Random) -> Bars:
    """A history that lost some of its last bars, but not the very last."""
    lost = chance.sample(range(2, HOLES_AMONG + 1), chance.randint(LEAST_HOLES, MOST_HOLES))
    keep = np.ones(len(history), dtype=np.bool_)
    keep[[-bar for bar in lost]] = False
    return history.where(keep)


def hardly_traded(history: Bars, chance: random.Random) -> Bars:
    """A history with a volume so small that a few million dollars change hands in a day."""
    turnover = float(np.median(history.close[-20:] * history.volume[-20:]))
    share = chance.uniform(LEAST_TURNOVER_USD, MOST_TURNOVER_USD) / turnover
    return Bars(
        as_of=history.as_of,
        open=history.open,
        high=history.high,
        low=history.low,
        close=history.close,
        volume=np.maximum(1.0, np.round(history.volume * share)),
    )
