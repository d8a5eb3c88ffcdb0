"""Cases from bars, made as the forecast loop makes its forecasts: the same numbers, inputs and headlines."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from libs.calendar import Calendar
from libs.evaluation.cases.case import EvalCase, Realised
from libs.evaluation.cases.document import FEATURES
from libs.judgement.bars import Bars
from libs.judgement.inputs import build_inputs, signal_of
from libs.judgement.rules import Rules
from libs.judgement.types import Fact, PriceForecast, Side
from services.forecast.cases import HISTORY_BARS
from services.forecast.feed.table import BarTable, to_moment
from services.forecast.feed.types import MIN_BARS
from services.forecast.numbers import forecast_one
from services.forecast.worker import FEED_DAYS, MODEL_BARS

FROM_BARS: Final = tuple(name for name in FEATURES if name != "earnings_in_days")
"""The features that are read off the bars alone, so that they were known when the last bar ended."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One bar of one ticker, by its end; `position` counts the ticker's bars from 0."""

    as_of: datetime
    ticker: str
    position: int
    daily: bool = True

    @property
    def name(self) -> str:
        """What a case of this place is called: `AAPL-20121120`, with the time where a bar does not end a day."""
        return f"{self.ticker}-{self.as_of:%Y%m%d}" if self.daily else f"{self.ticker}-{self.as_of:%Y%m%dT%H%M%S}"


@dataclass(frozen=True, slots=True)
class Barred:
    """A history up to a place, and the forecast it makes."""

    place: Place
    history: Bars
    forecast: PriceForecast
    side: Side


@dataclass(frozen=True, slots=True)
class BarCases:
    """Makes cases from a table of bars. `steps` is the horizon in bars, `horizon` its name."""

    table: BarTable
    rules: Rules
    horizon: str
    steps: int

    def places(self) -> list[Place]:
        """Every bar that has enough history before it and its horizon after it, by time, then ticker."""
        daily = all(one_a_day(history) for history in self.table.series.values())
        found = [
            Place(to_moment(history.as_of[position]), ticker, position, daily=daily)
            for ticker, history in self.table.series.items()
            for position in range(MIN_BARS - 1, len(history) - self.steps)
        ]
        return sorted(found)

    def history(self, place: Place) -> Bars:
        """The bars that a judgement at this place may see."""
        return self.table.history(place.ticker, place.as_of, HISTORY_BARS)

    def forecast(self, place: Place, history: Bars) -> Barred:
        """The forecast of a history."""
        closes = history.close[-MODEL_BARS:]
        numbers = forecast_one(closes, self.steps)
        prices = PriceForecast(float(closes[-1]), numbers.mean, numbers.lower, numbers.upper)
        least = self.rules.thresholds.min_expected_return_pct
        return Barred(place, history, prices, signal_of(prices, min_expected_return_pct=least).side)

    def case(
        self, barred: Barred, *, feed: str, calendar: Calendar, name: str = "", facts: Iterable[Fact] = ()
    ) -> EvalCase:
        """The case of a forecast; what is right is what the rules in code say, what came of it the bars after it."""
        place = barred.place
        inputs = build_inputs(
            place.ticker,
            barred.history,
            horizon=self.horizon,
            as_of=place.as_of,
            forecast=barred.forecast,
            rules=self.rules,
            calendar=calendar,
            facts=facts,
            feed_days=self.table.days(place.as_of, FEED_DAYS),
        )
        moments: dict[str, datetime | tuple[datetime, ...]] = dict.fromkeys(FROM_BARS, inputs.as_of)
        if inputs.earnings_in_days is not None:
            moments["earnings_in_days"] = inputs.facts["earnings_date"].as_of
        return EvalCase(
            id=name or place.name,
            as_of=inputs.as_of,
            feed=feed,
            inputs=inputs,
            target=self.rules.judge(inputs, feed).allow,
            realised=self.realised(place),
            moments=moments,
        )

    def realised(self, place: Place) -> Realised:
        """The change of the closing price to the horizon's bar."""
        history = self.table.series[place.ticker]
        later = place.position + self.steps
        change = float(history.close[later]) / float(history.close[place.position]) - 1
        return Realised(change, to_moment(history.as_of[later]))


def one_a_day(history: Bars) -> bool:
    """Whether no two bars end on one day."""
    days = history.as_of.astype("datetime64[D]")
    return bool(np.all(days[1:] > days[:-1]))
