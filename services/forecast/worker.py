"""The loop: a tick becomes numbers, the numbers are stored, and every forecast is judged while the loop goes on."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog
from numpy import float64
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from libs.judgement.record import RecordError, judgement_from_record
from libs.judgement.types import PriceForecast
from libs.telemetry import Origin, bound_id, new_id
from services.forecast.assessor import SUPERSEDED, Assessor, Standing
from services.forecast.cases import Assign, CaseMaker, Part, Plan, parts
from services.forecast.feed.types import MIN_BARS, Feed, FeedError, FeedUnreachableError, Tick
from services.forecast.judging import Case, JudgementWriter, Judges
from services.forecast.model import Forecaster
from services.forecast.numbers import Numbers
from services.forecast.patience import DATABASE_FAILURES, Patience, StopError, wait_for
from services.forecast.repository import Repository
from services.forecast.rows import Forecast, Stored

MODEL_BARS = 250
FEED_DAYS = 90
STOP_GRACE_S = 2.0
LONGEST_CHECK_S = 5.0

TICKS = Counter("lexi_forecast_ticks_total", "Ticks whose forecasts were stored")
STORED = Counter("lexi_forecast_stored_total", "Forecasts stored")
ROUND = Histogram(
    "lexi_forecast_round_seconds", "From a tick to its last stored forecast", buckets=(0.1, 0.5, 1, 5, 20)
)
LAST_AS_OF = Gauge("lexi_forecast_last_as_of_seconds", "Market time of the newest tick, seconds since 1970")
FEED_FAILING = Gauge("lexi_forecast_feed_failing", "1 while the feed cannot be read")

log = structlog.get_logger(__name__)


class Worker:
    """One run of the loop over one feed, until it is told to stop."""

    def __init__(
        self,
        *,
        feed: Feed,
        plan: Plan,
        forecaster: Forecaster,
        repository: Repository,
        assessor: Assessor,
        judges: Judges,
        writer: JudgementWriter,
        patience: Patience,
        assign: Assign,
    ) -> None:
        self._feed = feed
        self._plan = plan
        self._cases = CaseMaker(feed, plan, assign)
        self._forecaster = forecaster
        self._repository = repository
        self._assessor = assessor
        self._judges = judges
        self._writer = writer
        self._patience = patience
        self._run = ""
        self._after: datetime | None = None
        self._feed_reason: str | None = "not opened yet"

    async def feed_check(self) -> str | None:
        """Why the feed delivers nothing, None when it is well."""
        return self._feed_reason

    async def waiting_check(self) -> str | None:
        """What the loop waits for the database to do, None when it does not wait."""
        return self._patience.reason

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop; then running judgements get a moment, and what is finished is stored."""
        self._writer.start()
        tasks = {asyncio.create_task(self._loop(stop)), asyncio.create_task(self._judge_again(stop))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except StopError as step:
            log.info("stopped_while_waiting_for_database", step=str(step))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._judges.close(STOP_GRACE_S)
            self._assessor.tally.say()
            await self._writer.close(STOP_GRACE_S)
            await self._feed.close()

    async def _loop(self, stop: asyncio.Event) -> None:
        await self._open(stop)
        while not stop.is_set():
            begun = time.monotonic()
            tick = await self._next()
            if tick is not None:
                with Origin(new_id("tick")).span("tick", **{"lexi.feed": self._run}):
                    await self._round(tick)
                ROUND.observe(time.monotonic() - begun)
            elif self._feed_reason is None and self._feed.ended(self._after):
                await self._next_run()
            await wait_for(stop, self._plan.interval_s - (time.monotonic() - begun))

    async def _open(self, stop: asyncio.Event) -> None:
        """Open the feed; one that is out of reach is tried again, one that is wrong (`FeedError`) ends the process."""
        while not stop.is_set():
            try:
                await self._feed.open()
            except FeedUnreachableError as error:
                self._feed_failed(error)
                await wait_for(stop, LONGEST_CHECK_S)
            else:
                self._feed_reason = None
                FEED_FAILING.set(0)
                await self._begin_run()
                return

    async def _begin_run(self) -> None:
        """Go on with the newest run of this feed, or begin one, and judge what a stop left unjudged."""
        source = self._feed.source
        previous = await self._patience.until_done(lambda: self._repository.newest_run(source), "find the run")
        self._run = self._feed.run_name(previous)
        self._after = previous.last_as_of if previous is not None and previous.name == self._run else None
        self._assessor.feed = self._cases.run = self._run
        self._assessor.forget()
        await self._patience.until_done(lambda: self._repository.begin_run(self._run, source), "begin the run")
        off = self._plan.rules.switched_off(self._run)
        after = None if self._after is None else self._after.isoformat()
        log.info("run_goes_on", feed=self._run, after=after, rules_switched_off=off)
        if self._after is not None:
            with bound_id(new_id("start")):
                await self._take_up(self._after)

    async def _next_run(self) -> None:
        await self._patience.until_done(lambda: self._repository.end_run(self._run), "end the run")
        log.info("run_ended", feed=self._run)
        await self._begin_run()

    async def _take_up(self, as_of: datetime) -> None:
        """Follow the forecasts of the newest moment again; those that were never judged are judged now.

        Older ones that a stop or a crash left waiting were overtaken, and say so.
        """
        await self._patience.until_done(
            lambda: self._repository.give_up_abandoned(self._run, SUPERSEDED), "close what was left behind"
        )
        stored = await self._patience.until_done(lambda: self._repository.newest(self._run, as_of), "read forecasts")
        if not stored:
            return
        tickers = [one.ticker for one in stored]
        known = await self._patience.until_done(lambda: self._repository.known(tickers, as_of), "read facts")
        days = self._feed.days(as_of, FEED_DAYS)
        for one in stored:
            try:
                inputs = self._cases.inputs(one.ticker, as_of, one.prices, known[one.ticker], days)
            except KeyError:
                log.info("ticker_left_the_feed", ticker=one.ticker)
                continue
            self._take_up_one(one, Case(one.id, inputs))

    def _take_up_one(self, stored: Stored, case: Case) -> None:
        if stored.age_s is None:
            self._assessor.follow(case, stored.prices)
            self._judges.submit(case)
            return
        try:
            judgement = judgement_from_record(stored.llm)
        except RecordError as error:
            log.warning("stored_judgement_unreadable", forecast_id=str(stored.id), error=str(error))
            judgement = None
        self._assessor.follow(case, stored.prices, judgement=judgement, age_s=stored.age_s)

    async def _next(self) -> Tick | None:
        try:
            tick = await self._feed.next(self._after)
        except FeedError as error:
            self._feed_failed(error)
            return None
        self._feed_reason = None
        FEED_FAILING.set(0)
        return tick

    def _feed_failed(self, error: FeedError) -> None:
        if self._feed_reason != str(error):
            log.error("feed_failed", error=str(error))
        self._feed_reason = str(error)
        FEED_FAILING.set(1)

    async def _round(self, tick: Tick) -> None:
        """Store a tick part by part; each part is judged from the moment it is stored."""
        as_of = tick.as_of
        days = self._feed.days(as_of, FEED_DAYS)
        shadow = await self._patience.until_done(self._repository.shadow_mode, "read the switches")
        closes = {
            ticker: history.close[-MODEL_BARS:]
            for ticker in tick.bars
            if len(history := self._feed.history(ticker, as_of, MODEL_BARS)) >= MIN_BARS
        }
        batches = list(parts(list(closes))) or [[]]
        short = {ticker: bar for ticker, bar in tick.bars.items() if ticker not in closes}
        coming = self._begin_numbers(batches[0], closes)
        for position, batch in enumerate(batches):
            numbers = await coming
            last = position + 1 == len(batches)
            if not last:
                coming = self._begin_numbers(batches[position + 1], closes)
            bars = {ticker: tick.bars[ticker] for ticker in batch} | (short if last else {})
            try:
                await self._store(
                    Part(as_of, dict(zip(batch, numbers, strict=True)), bars, days, shadow), complete=last
                )
            except StopError:
                coming.cancel()
                raise
        self._after = as_of
        TICKS.inc()
        log.info("tick_stored", feed=self._run, as_of=as_of.isoformat(), tickers=len(closes))
        LAST_AS_OF.set(as_of.timestamp())

    def _begin_numbers(
        self, batch: Sequence[str], closes: Mapping[str, NDArray[float64]]
    ) -> asyncio.Task[list[Numbers]]:
        series = [closes[ticker] for ticker in batch]
        return asyncio.create_task(self._forecaster.forecast(series, self._plan.horizon.steps))

    async def _store(self, part: Part, *, complete: bool) -> None:
        """Store a part of a tick with its numbers, then hand its forecasts to the judges."""
        known = await self._patience.until_done(
            lambda: self._repository.known(list(part.numbers), part.as_of), "read facts"
        )
        cases: list[tuple[Case, PriceForecast]] = []
        forecasts: list[Forecast] = []
        for ticker, numbers in part.numbers.items():
            prices = PriceForecast(part.bars[ticker].close, numbers.mean, numbers.lower, numbers.upper)
            inputs = self._cases.inputs(ticker, part.as_of, prices, known[ticker], part.days)
            case = Case(self._cases.id_of(ticker, numbers, part.as_of), inputs)
            cases.append((case, prices))
            forecasts.append(self._cases.forecast(case, numbers, shadow=part.shadow))
        await self._patience.until_done(
            lambda: self._repository.store_tick(
                self._run, part.as_of, bars=part.bars, forecasts=forecasts, complete=complete
            ),
            "store forecasts",
        )
        STORED.inc(len(forecasts))
        for case, prices in cases:
            self._assessor.follow(case, prices)
            self._judges.submit(case)
        await asyncio.sleep(0)

    async def _judge_again(self, stop: asyncio.Event) -> None:
        """Judge forecasts again that nothing newer replaced, at half of the time a decision may gate."""
        pause = min(LONGEST_CHECK_S, self._plan.decision_ttl_s / 10)
        while not await wait_for(stop, pause):
            due = [one for one in self._assessor.due() if not self._judges.knows(one.inputs.ticker)]
            by_moment: dict[datetime, list[Standing]] = {}
            for standing in due:
                by_moment.setdefault(standing.inputs.as_of, []).append(standing)
            for as_of, group in by_moment.items():
                try:
                    with bound_id(new_id("again")):
                        await self._submit_again(as_of, group)
                except DATABASE_FAILURES as error:
                    log.warning("judging_again_failed", error=f"{type(error).__name__}: {error}".splitlines()[0])

    async def _submit_again(self, as_of: datetime, group: Sequence[Standing]) -> None:
        tickers = [standing.inputs.ticker for standing in group]
        known = await self._repository.known(tickers, as_of)
        if as_of == self._after and self._feed_reason is None:
            await self._repository.confirm_bars(self._run)
        days = self._feed.days(as_of, FEED_DAYS)
        for standing in group:
            ticker = standing.inputs.ticker
            if not self._assessor.is_newest(standing) or self._judges.knows(ticker):
                continue
            try:
                inputs = self._cases.inputs(ticker, as_of, standing.prices, known[ticker], days)
            except KeyError:
                self._assessor.drop(ticker)
                log.info("ticker_left_the_feed", ticker=ticker)
                continue
            self._judges.submit(self._assessor.again(standing, inputs))
