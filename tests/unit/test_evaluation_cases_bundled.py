"""The bundled cases: made on the production path, with every rule on both sides, by seed."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from libs.calendar import BARS, open_calendar
from libs.evaluation.cases.case import EvalCase, case_from, document_of, vouched_for
from libs.evaluation.cases.dataset import check, write_cases
from libs.judgement.thresholds import Rule
from libs.judgement.types import PriceForecast
from services.forecast.cases import CaseMaker, Plan
from services.forecast.feed.replay import ReplayFeed
from services.forecast.numbers import forecast_batch
from services.forecast.rows import Known
from services.forecast.settings import ForecastSettings
from services.forecast.worker import FEED_DAYS, MODEL_BARS
from tests.unit.judgement_cases import RULES
from tools.llm_eval.bundled import ALONE_EACH, AS_REPLAYED, KINDS, MADE_BY, WITH_FACTS, arranged, bundled_cases


@pytest.fixture(scope="module")
def cases() -> list[EvalCase]:
    """Enough cases for every kind to occur."""
    return list(bundled_cases(n=300, seed=1, rules=RULES))


def test_they_pass_every_check(cases: list[EvalCase], tmp_path: Path) -> None:
    write_cases(tmp_path / "cases.jsonl", cases)
    info = check(tmp_path / "cases.jsonl")
    assert (info.cases, info.without_moments) == (300, 0)
    assert all(vouched_for(case) == () for case in cases)
    assert [case_from(document_of(case)) for case in cases[:20]] == cases[:20]


def test_right_is_what_the_rules_say_and_both_answers_occur(cases: list[EvalCase]) -> None:
    assert all(case.target == RULES.judge(case.inputs, case.feed).allow for case in cases)
    for feed in (AS_REPLAYED, WITH_FACTS):
        right = Counter(case.target for case in cases if case.feed == feed)
        assert min(right[True], right[False]) >= 30


def test_every_rule_denies_some(cases: list[EvalCase]) -> None:
    reasons = Counter(reason for case in cases for reason in RULES.judge(case.inputs, case.feed).reasons)
    assert set(Rule) <= set(reasons)
    assert any(reason.startswith("UNKNOWN_") for reason in reasons)
    assert {case.id.rpartition("-")[2] for case in cases if case.feed == WITH_FACTS} == set(KINDS)


def test_few_cases_have_each_rule_alone_and_nothing_is_lost(cases: list[EvalCase]) -> None:
    for seed in (1, 4):
        few = bundled_cases(n=60, seed=seed, rules=RULES)
        alone = Counter(RULES.judge(case.inputs, case.feed).reasons for case in few)
        assert all(alone[(rule.value,)] >= ALONE_EACH for rule in Rule), alone
        assert alone[()] >= 20
    rare = [case for case in cases if RULES.judge(case.inputs, case.feed).reasons != (Rule.BORROW.value,)]
    for stream in (cases, cases[:4], cases[:1], [], rare):
        assert sorted(case.id for case in arranged(iter(stream), RULES)) == sorted(case.id for case in stream)


def test_facts_are_marked_as_made(cases: list[EvalCase]) -> None:
    facts = [fact for case in cases for fact in case.inputs.facts.values()]
    assert facts
    assert {fact.source for fact in facts} == {MADE_BY}
    assert not any(case.inputs.facts for case in cases if case.feed == AS_REPLAYED)


def test_the_outcome_is_the_next_sessions(cases: list[EvalCase]) -> None:
    for case in cases:
        assert case.realised is not None
        assert timedelta(0) < case.realised.at - case.as_of <= timedelta(days=8)
        assert -0.5 < case.realised.change < 0.5


def test_same_seed_same_cases_and_fewer_are_some_of_more(cases: list[EvalCase]) -> None:
    few = list(bundled_cases(n=30, seed=1, rules=RULES))
    assert few == list(bundled_cases(n=30, seed=1, rules=RULES))
    assert {case.id for case in few} <= {case.id for case in cases}
    known = {case.id: case for case in cases}
    assert all(known[case.id] == case for case in few)
    assert {case.id for case in bundled_cases(n=30, seed=2, rules=RULES)} != {case.id for case in few}
    assert [case.as_of for case in few] == sorted(case.as_of for case in few)


async def test_a_case_is_what_the_forecast_loop_would_have_judged(cases: list[EvalCase]) -> None:
    settings = ForecastSettings(_env_file=None)  # pyright: ignore[reportCallIssue] - pydantic-settings' own argument
    plan = Plan(
        interval_s=5,
        horizon_name=settings.horizon,
        horizon=settings.parsed_horizon,
        decision_ttl_s=900,
        calendar=open_calendar(BARS),
        rules=RULES,
    )
    feed = ReplayFeed()
    await feed.open()
    maker = CaseMaker(feed, plan, lambda key, unit: None)
    for case in [case for case in cases if case.feed == AS_REPLAYED][::25]:
        closes = feed.history(case.ticker, case.as_of, MODEL_BARS).close
        (numbers,) = forecast_batch([closes], 1)
        prices = PriceForecast(float(closes[-1]), numbers.mean, numbers.lower, numbers.upper)
        days = feed.days(case.as_of, FEED_DAYS)
        assert maker.inputs(case.ticker, case.as_of, prices, Known(), days) == case.inputs
