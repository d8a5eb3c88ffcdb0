"""What a run is asked to reach: how it is written, on what it is judged, and what is said of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.figures.summary import Summary, summarise
from libs.evaluation.figures.thresholds import (
    SPOKEN_OF,
    Threshold,
    ThresholdError,
    least_answers,
    parse_threshold,
    parse_thresholds,
)
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.statistics.intervals import wilson
from tests.unit.evaluation_figure_rows import (
    POLICY_ONE,
    POLICY_TWO,
    RATIONALE_ONE,
    invalid,
    plan_of,
    row_of,
    silent,
)

BOTH = (POLICY_ONE, POLICY_TWO)


def summary_of(rows: list[Row], plan: Plan) -> Summary:
    return summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=1.0)


def test_a_threshold_may_be_narrowed() -> None:
    assert parse_threshold("validity=0.98") == Threshold("validity", 0.98)
    assert parse_threshold(" policy:caught = 0.9 ") == Threshold("caught", 0.9, "policy")
    assert parse_threshold("policy@1.1.0:flips=0") == Threshold("flips", 0, "policy", "1.1.0")
    assert parse_thresholds(["validity=0.95 flips=0", "caught=0.9,grounded=0.5", ""]) == (
        Threshold("validity", 0.95),
        Threshold("flips", 0),
        Threshold("caught", 0.9),
        Threshold("grounded", 0.5),
    )


@given(
    st.sampled_from(sorted(SPOKEN_OF)),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["", "policy"]),
    st.sampled_from(["", "1.0"]),
)
def test_what_is_written_is_read_back(name: str, asked: float, prompt: str, version: str) -> None:
    whole = float(round(asked * 10)) if name == "flips" else asked
    scope = "policy" if version else prompt
    threshold = Threshold(name, whole, "rationale" if name == "grounded" and scope else scope, version)
    assert parse_threshold(str(threshold)) == threshold


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("validity", "'validity' is no threshold: write NAME=NUMBER, such as validity=0.98"),
        ("", "is no threshold"),
        (":validity=0.9", "is no threshold"),
        ("policy@:validity=0.9", "is no threshold"),
        ("valid=0.98", "there is no threshold 'valid'; there is answered, validity, first_validity"),
        ("latency_p95_ms=300", "there is no threshold 'latency_p95_ms'"),
        ("validity=high", "'high' is no number"),
        ("validity=98", "ask for a number from 0 to below 1, such as 0.99, which 381 answers"),
        ("validity=1", "the lower end of its interval, which never reaches 1"),
        ("validity=nan", "ask for a number from 0"),
        ("validity=-0.1", "ask for a number from 0"),
        ("flips=0.5", "flips are counted"),
        ("flips=-1", "flips are counted"),
        ("flips=inf", "flips are counted"),
        ("rationale:caught=0.9", "caught speaks of policy alone"),
    ],
)
def test_what_cannot_be_read_says_what_there_is(text: str, told: str) -> None:
    with pytest.raises(ThresholdError) as caught:
        parse_threshold(text)
    assert told in str(caught.value)


def test_a_rate_is_judged_on_its_lower_end() -> None:
    plan = plan_of(cases=60, thresholds=["validity=0.98", "validity=0.5"])
    rows = [invalid(plan, at) if at < 2 else row_of(plan, at) for at in range(60)]
    summary = summary_of(rows, plan)
    wanted = wilson(58, 60)
    assert wanted is not None
    missed, met = summary.findings
    assert missed.document() == {
        "name": "validity", "asked": 0.98, "prompt": "policy", "version": "1.0.0",
        "value": pytest.approx(58 / 60), "lower": pytest.approx(wanted.low), "n": 60, "passed": False,
        "sentence": "validity of policy 1.0.0 is 0.967 (0.886 to 0.991), asked for at least 0.98 on the lower end",
    }  # fmt: skip
    assert met.passed
    assert summary.passed is False
    assert summary.document()["passed"] is False


def test_a_rate_that_is_high_enough_with_too_few_answers_says_how_many_it_takes() -> None:
    plan = plan_of(cases=60, thresholds=["validity=0.98"])
    summary = summary_of([row_of(plan, at) for at in range(60)], plan)
    [finding] = summary.findings
    assert not finding.passed
    assert finding.sentence == (
        "validity of policy 1.0.0 is 1.000 (0.939 to 1.000), asked for at least 0.98 on the lower end; "
        "60 are too few to show it, at this rate it takes 189"
    )


@given(st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_so_many_answers_at_a_rate_are_enough_and_one_fewer_is_not(asked: float, way: float) -> None:
    value = asked + way * (1 - asked)
    n = least_answers(asked, value)
    enough, fewer = wilson(n * value, n), wilson((n - 1) * value, n - 1)
    assert enough is not None
    assert enough.low >= asked - 1e-12
    assert fewer is None or fewer.low < asked + 1e-12


def test_faults_are_part_of_how_many_it_takes() -> None:
    plan = plan_of(cases=300, thresholds=["validity=0.95"])
    [finding] = summary_of([invalid(plan, at) if at < 8 else row_of(plan, at) for at in range(300)], plan).findings
    assert finding.sentence.endswith("; 300 are too few to show it, at this rate it takes 336")


def test_nothing_asked_is_neither_passed_nor_missed() -> None:
    plan = plan_of(cases=1)
    summary = summary_of([row_of(plan, 0)], plan)
    assert summary.passed is None
    assert summary.document()["passed"] is None
    assert summary.document()["versions"][0]["passed"] is None


def test_it_holds_for_every_version_of_the_prompts_it_speaks_of() -> None:
    plan = plan_of((POLICY_ONE, POLICY_TWO, RATIONALE_ONE), cases=100, thresholds=["validity=0.9", "caught=0.5"])
    rows = [
        invalid(plan, case, 1) if version == 1 and case < 30 else row_of(plan, case, version, target=False)
        for case in range(100)
        for version in range(3)
    ]
    summary = summary_of(rows, plan)
    found = [(each.name, each.prompt, each.version, each.passed) for each in summary.findings]
    assert found == [
        ("validity", "policy", "1.0.0", True),
        ("validity", "policy", "1.1.0", False),
        ("validity", "rationale", "1.0.0", True),
        ("caught", "policy", "1.0.0", True),
        ("caught", "policy", "1.1.0", True),
    ]
    assert [each["passed"] for each in summary.document()["versions"]] == [True, False, True]


def test_caught_and_let_through_are_the_other_side_of_what_went_wrong() -> None:
    plan = plan_of(cases=200, thresholds=["caught=0.9", "let_through=0.9"])
    rows = [row_of(plan, at, target=at % 2 == 0, allow=at % 2 == 0 if at > 20 else at % 2 == 1) for at in range(200)]
    caught, through = summary_of(rows, plan).findings
    wanted = wilson(90, 100), wilson(89, 100)
    assert wanted[0] is not None
    assert wanted[1] is not None
    assert (caught.value, caught.lower) == (pytest.approx(0.9), pytest.approx(wanted[0].low))
    assert (through.value, through.lower) == (pytest.approx(0.89), pytest.approx(wanted[1].low))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grounded=0.9", "grounded cannot be judged: rationale was not evaluated"),
        ("policy@9.9.9:validity=0.9", "validity cannot be judged: policy 9.9.9 was not evaluated"),
        ("caught=0.9", "caught of policy 1.0.0 is unknown: no answered case was to be denied"),
        ("let_through=0.9", "let_through of policy 1.0.0 is unknown: no answered case was to be allowed"),
        ("target_agreement=0.9", "is unknown: no answered case says what a right answer is"),
        ("repeat_agreement=0.9", "is unknown: no case was answered twice; --repeat 2"),
        ("masked_agreement=0.9", "is unknown: no case was answered together with its masked twin"),
        ("versions_agreement=0.9", "is unknown: no other version answered the same cases"),
        ("flips=0", "flips of policy 1.0.0 is unknown: no case was answered together with a hostile twin"),
    ],
)
def test_what_cannot_be_judged_is_missed_and_says_why(text: str, told: str) -> None:
    plan = plan_of(cases=1, thresholds=[text])
    summary = summary_of([row_of(plan, 0)], plan)
    [finding] = summary.findings
    assert told in finding.sentence
    assert (finding.passed, finding.value, finding.lower, finding.n) == (False, None, None, 0)
    assert summary.passed is False


def test_no_answer_at_all_is_no_validity() -> None:
    plan = plan_of(cases=1, thresholds=["validity=0.1", "answered=0.1"])
    validity, answered = summary_of([silent(plan, 0)], plan).findings
    assert validity.sentence == "validity of policy 1.0.0 is unknown: nothing was answered"
    assert (answered.value, answered.passed) == (0.0, False)


def test_versions_must_agree_with_the_one_that_is_furthest_off() -> None:
    three = (*BOTH, type(POLICY_ONE)("policy", "2.0.0", "9" * 64))
    plan = plan_of(three, cases=50, thresholds=["versions_agreement=0.5"])
    rows = [
        row_of(plan, case, version, allow=version == 2 or (version == 1 and case < 5))
        for case in range(50)
        for version in range(3)
    ]
    found: dict[str, Any] = {each.version: each.value for each in summary_of(rows, plan).findings}
    assert found == {"1.0.0": 0.0, "1.1.0": pytest.approx(0.1), "2.0.0": 0.0}


def test_a_run_that_is_not_complete_passes_nothing() -> None:
    plan = plan_of(cases=500, thresholds=["validity=0.5"])
    summary = summary_of([row_of(plan, at) for at in range(499)], plan)
    [finding] = summary.findings
    assert (finding.passed, summary.passed) == (False, False)
    assert finding.sentence.endswith("; missed, as 1 of 500 items have not been asked")
    assert summary.document()["run"]["complete"] is False


def test_rows_that_are_not_there_are_noticed_even_if_nobody_says_so() -> None:
    plan = plan_of(cases=2, thresholds=["validity=0.01"])
    summary = summarise([row_of(plan, 0)], plan, missing=0, elapsed_s=0.0)
    assert summary.document()["run"]["missing"] == 1
    assert summary.passed is False


def test_a_threshold_of_the_plan_that_cannot_be_read_is_an_error() -> None:
    plan = plan_of(cases=1, thresholds=["speed=1"])
    with pytest.raises(ThresholdError, match="no threshold 'speed'"):
        summary_of([row_of(plan, 0)], plan)
