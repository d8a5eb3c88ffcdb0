"""How cases are taken in turn, and what is kept of a decision that could not be asked for again."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from libs.judgement.types import Decision, Inputs, Judgement, RulesVerdict, Signal
from libs.llm.types import Answer, AnswerStatus
from services.forecast.assessor import keep_decision
from services.forecast.judging import Case, Finished, Judges, row_of
from services.forecast.tally import Tally

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ALLOW = Decision(allow=True, reasons=(), flags=())


def inputs(ticker: str, tick: int = 0) -> Inputs:
    return Inputs(
        ticker=ticker,
        horizon="1d",
        as_of=NOON + timedelta(days=tick),
        signal=Signal("buy", 100.0, 101.0, 99.0, 103.0, 0.01),
        factors={},
        liquidity_usd=None,
        coverage_pct=None,
    )


def case(ticker: str, tick: int = 0) -> Case:
    return Case(UUID(int=hash((ticker, tick)) % 2**64), inputs(ticker, tick))


class Sink:
    """Takes what is finished, as the writer does."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, bool]] = []

    def add(self, finished: Finished) -> None:
        done = finished.case
        self.taken.append((done.inputs.ticker, (done.as_of - NOON).days, finished.complete))


class Desk:
    """Judges on demand: a case is done when the test says so."""

    def __init__(self, places: int) -> None:
        self.sink = Sink()
        self.running: dict[str, asyncio.Future[None]] = {}
        self.begun: list[tuple[str, int]] = []
        self.most = 0
        self.judges = Judges(
            self._judge,
            self.sink,
            places=lambda: places,
            superseded=lambda one: Finished(one, lambda _: {}, complete=False),
        )

    async def _judge(self, one: Case) -> Finished:
        ticker = one.inputs.ticker
        assert ticker not in self.running
        self.running[ticker] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        self.begun.append((ticker, (one.as_of - NOON).days))
        try:
            await self.running[ticker]
        finally:
            del self.running[ticker]
        return Finished(one, lambda _: {}, complete=True)

    async def finish(self, ticker: str) -> None:
        self.running[ticker].set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_only_the_newest_of_a_ticker_waits_while_it_is_judged() -> None:
    desk = Desk(places=4)
    for tick in range(4):
        desk.judges.submit(case("A", tick))
        await settle()
    assert desk.begun == [("A", 0)]
    assert desk.sink.taken == [("A", 1, False), ("A", 2, False)]
    await desk.finish("A")
    await desk.finish("A")
    assert desk.begun == [("A", 0), ("A", 3)]
    assert desk.sink.taken[2:] == [("A", 0, True), ("A", 3, True)]
    assert not desk.judges.busy


async def test_no_more_run_than_there_are_places_and_the_rest_come_in_order() -> None:
    desk = Desk(places=2)
    for ticker in "ABCDE":
        desk.judges.submit(case(ticker))
    await settle()
    assert [ticker for ticker, _ in desk.begun] == ["A", "B"]
    assert desk.judges.knows("E")
    for ticker in ("B", "A", "C", "D", "E"):
        await desk.finish(ticker)
    assert [ticker for ticker, _ in desk.begun] == ["A", "B", "C", "D", "E"]
    assert desk.most == 2


async def test_a_waiting_newer_tick_does_not_keep_other_tickers_out() -> None:
    desk = Desk(places=2)
    desk.judges.submit(case("A", 0))
    desk.judges.submit(case("A", 1))
    desk.judges.submit(case("B", 0))
    await settle()
    assert desk.begun == [("A", 0), ("B", 0)]
    await desk.judges.close(0.01)


def test_a_judgement_ages_while_it_waits_to_be_stored() -> None:
    waited = Finished(case("A"), lambda _: {}, complete=True, at=time.monotonic() - 3600)
    assert row_of(waited, True).age_s >= 3600


async def test_closing_lets_go_of_what_runs_and_begins_nothing_new() -> None:
    desk = Desk(places=1)
    desk.judges.submit(case("A"))
    desk.judges.submit(case("B"))
    await settle()
    await desk.judges.close(0.01)
    assert desk.begun == [("A", 0)]
    assert desk.sink.taken == []
    assert desk.running == {}


def answer(status: AnswerStatus) -> Answer:
    return Answer(
        status=status,
        text="",
        value=None,
        error=None,
        cached=False,
        call_id=uuid4(),
        model="m",
        upstream="lexi",
        prompt_key="policy",
        prompt_version="1.0.0",
        prompt_hash="",
        arm="",
    )


def judgement(status: AnswerStatus, decision: Decision | None, *, rules: bool = True) -> Judgement:
    return Judgement(inputs("A"), answer("ok"), answer(status), decision, RulesVerdict(allow=rules))


def test_a_decision_stands_under_new_rules_while_the_model_is_away() -> None:
    before = judgement("ok", ALLOW)
    now = judgement("unavailable", None, rules=False)
    kept = keep_decision(before, now)
    assert kept == replace(now, policy=before.policy, decision=ALLOW)
    assert kept.rules.allow is False


@pytest.mark.parametrize("status", ["ok", "invalid"])
def test_an_answer_replaces_the_decision_whatever_it_says(status: AnswerStatus) -> None:
    now = judgement(status, None)
    assert keep_decision(judgement("ok", ALLOW), now) is now
    assert keep_decision(None, now) is now


async def test_the_log_counts_verdicts_in_one_line_and_warns_where_some_are_missing() -> None:
    tally = Tally(every_s=0)
    away = replace(answer("unavailable"), error="breaker_open: not asked: it quotes a prompt")
    with capture_logs() as logged:
        tally.count(judgement("ok", ALLOW))
        await settle()
        for policy in (answer("ok"), away, away, replace(answer("invalid"), error="not_json: {")):
            tally.count(replace(judgement("ok", None), policy=policy))
        tally.say()
        tally.say()
        await settle()
    assert logged == [
        {"event": "forecasts_judged", "log_level": "info", "ok": 1, "invalid": 0, "unavailable": 0},
        {
            "event": "forecasts_judged",
            "log_level": "warning",
            "ok": 1,
            "invalid": 1,
            "unavailable": 2,
            "most_frequent_error": "breaker_open",
        },
    ]
