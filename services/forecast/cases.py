"""From a bar and its numbers to a case: the inputs a judgement sees, and the row that is stored before it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from libs.calendar import ALWAYS, Calendar
from libs.exposures.record import Assigned
from libs.judgement.assess import POLICY, RATIONALE
from libs.judgement.inputs import build_inputs
from libs.judgement.record import pending
from libs.judgement.rules import Rules
from libs.judgement.types import Inputs, PriceForecast
from libs.llm.experiments import Assignment, Unit
from services.forecast.feed.types import Bar, Feed
from services.forecast.judging import Case
from services.forecast.numbers import Numbers
from services.forecast.rows import Forecast, Known, forecast_id
from services.forecast.settings import Horizon

DAY = timedelta(days=1)
HISTORY_BARS = 300

Assign: TypeAlias = Callable[[str, Unit], Assignment | None]
"""The arm of a unit in the experiment on a prompt; None where none runs."""

CHUNKS = (32, 64)
"""Tickers per batch of numbers: small ones first, so that judging starts at once; the last size repeats."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the loop does, from the settings: its pace, how far ahead it looks, and what a session is."""

    interval_s: float
    horizon_name: str
    horizon: Horizon
    decision_ttl_s: float
    calendar: Calendar
    rules: Rules

    def due_at(self, as_of: datetime) -> datetime | None:
        """When the horizon of a forecast ends; None where the calendar cannot say.

        Bars shorter than a day end on the clock where trading never stops; elsewhere a calendar of days cannot tell.
        """
        return self._bars_on(as_of, self.horizon.steps)

    def ends_at(self, as_of: datetime) -> datetime | None:
        """When a forecast of a live feed ends to be the market's latest: a quarter of a bar after the next one is due.

        None where the calendar cannot say.
        """
        due = self._bars_on(as_of, 1)
        return None if due is None else due + self.horizon.length / 4

    def _bars_on(self, as_of: datetime, steps: int) -> datetime | None:
        if self.horizon.length >= DAY:
            return self.calendar.add_sessions(as_of, steps)
        return as_of + steps * self.horizon.length if self.calendar.name == ALWAYS else None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tick: its numbers and bars by ticker, and what holds for the whole tick."""

    as_of: datetime
    numbers: Mapping[str, Numbers]
    bars: Mapping[str, Bar]
    days: tuple[date, ...]
    shadow: bool


def parts(tickers: Sequence[str]) -> Iterator[Sequence[str]]:
    """The tickers in batches of `CHUNKS`."""
    start = 0
    sizes = iter(CHUNKS)
    size = CHUNKS[-1]
    while start < len(tickers):
        size = next(sizes, size)
        yield tickers[start : start + size]
        start += size


class CaseMaker:
    """Makes the inputs and rows of one run of a feed."""

    def __init__(self, feed: Feed, plan: Plan, assign: Assign) -> None:
        self._feed = feed
        self._plan = plan
        self._assign = assign
        self.run = ""

    def id_of(self, ticker: str, numbers: Numbers, as_of: datetime) -> UUID:
        """The id of a forecast of this run."""
        return forecast_id(
            feed=self.run, ticker=ticker, horizon=self._plan.horizon_name, model=numbers.model, as_of=as_of
        )

    def forecast(self, case: Case, numbers: Numbers, *, shadow: bool) -> Forecast:
        """The row to store before the case is judged."""
        inputs, rules = case.inputs, self._plan.rules
        return Forecast(
            id=case.id,
            ticker=inputs.ticker,
            last_price=inputs.signal.last_price,
            numbers=numbers,
            due_at=self._plan.due_at(inputs.as_of),
            ends_at=self._plan.ends_at(inputs.as_of),
            llm=pending(inputs, rules=rules.judge(inputs, self.run), shadow_mode=shadow),
            assigned=tuple(self._assigned(case)),
        )

    def _assigned(self, case: Case) -> Iterator[Assigned]:
        """What running experiments give a case, as the client will draw it."""
        inputs = case.inputs
        unit = Unit(ticker=inputs.ticker, as_of=inputs.as_of, forecast_id=case.id)
        for key in (RATIONALE, POLICY):
            given = self._assign(key, unit)
            if given is not None:
                yield Assigned(
                    key=key,
                    forecast_id=case.id,
                    phase=given.phase,
                    unit=given.unit,
                    arm=given.arm,
                    feed=self.run,
                    ticker=inputs.ticker,
                    horizon=inputs.horizon,
                    as_of=inputs.as_of,
                    side=inputs.signal.side,
                )

    def inputs(
        self, ticker: str, as_of: datetime, prices: PriceForecast, known: Known, days: tuple[date, ...]
    ) -> Inputs:
        """What a judgement of this forecast may see. Raises `KeyError` for a ticker the feed does not have."""
        return build_inputs(
            ticker,
            self._feed.history(ticker, as_of, HISTORY_BARS),
            horizon=self._plan.horizon_name,
            as_of=as_of,
            forecast=prices,
            rules=self._plan.rules,
            calendar=self._plan.calendar,
            facts=known.facts.values(),
            headlines=known.headlines,
            feed_days=days,
        )
