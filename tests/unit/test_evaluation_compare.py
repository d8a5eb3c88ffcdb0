"""Two runs on the cases that both have."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from libs.evaluation.figures.compare import compare
from libs.evaluation.running.plan import Dataset, Plan
from libs.evaluation.running.row import Row
from libs.statistics.paired import mcnemar
from tests.unit.evaluation_figure_rows import (
    POLICY_ONE,
    POLICY_TWO,
    RATIONALE_ONE,
    Simulated,
    Ways,
    invalid,
    plan_of,
    row_of,
    silent,
    simulated,
)


def comparison_of(first: list[Row], second: list[Row], one: Plan, other: Plan) -> dict[str, Any]:
    return compare(first, second, first_plan=one, second_plan=other).document()


def test_decisions_are_held_against_each_other_on_cases_of_the_same_id() -> None:
    one, other = plan_of(cases=5), plan_of((POLICY_TWO,), cases=4)
    first = [row_of(one, at, allow=at in {0, 1, 2}, text=f"first {at}") for at in range(5)]
    # The other run has the same cases in another order, and one of its own.
    second = [
        row_of(other, 0, case="case-2", ticker="IBM", allow=False, text="second 2"),
        row_of(other, 1, case="case-1", ticker="GOOG", allow=True),
        row_of(other, 2, case="case-3", ticker="MSFT", allow=True, text="second 3"),
        row_of(other, 3, case="new", allow=True),
    ]
    found = comparison_of(first, second, one, other)
    assert found["cases"] == {"both": 3, "only_first": 2, "only_second": 1, "unlike": 0}
    [pair] = found["pairs"]
    assert (pair["prompt"], pair["first"], pair["second"], pair["same_content"]) == ("policy", "1.0.0", "1.1.0", False)
    assert (pair["cases"], pair["only_first_allows"], pair["only_second_allows"]) == (3, 1, 1)
    assert pair["p"] == mcnemar(1, 1)
    assert pair["difference"]["value"] == 0.0
    assert [(flip["case"], flip["to"], flip["first"]["text"], flip["second"]["text"]) for flip in pair["flips"]] == [
        ("case-3", "allow", "first 3", "second 3"),
        ("case-2", "deny", "first 2", "second 2"),
    ]


def test_differences_are_the_second_less_the_first() -> None:
    one, other = plan_of(cases=40), plan_of(cases=40)
    first = [invalid(one, at) if at < 10 else row_of(one, at, allow=at < 20, target=at < 30) for at in range(40)]
    second = [
        row_of(other, at, allow=at < 30, target=at < 30, total_ms=55.0, tokens_out=25 + at % 2) for at in range(40)
    ]
    [pair] = comparison_of(first, second, one, other)["pairs"]
    assert pair["rates"]["validity"]["difference"]["value"] == 0.25
    assert pair["rates"]["allow_rate"]["difference"]["value"] == 0.5
    assert pair["rates"]["target_agreement"]["first"]["value"] == pytest.approx(20 / 30)
    assert pair["rates"]["target_agreement"]["second"]["value"] == 1.0
    assert pair["rates"]["validity"]["p"] == mcnemar(0, 10)
    assert pair["means"]["latency_ms"] == {"value": -50.0, "low": None, "high": None, "n": 40, "unit": "ms"}
    assert pair["means"]["tokens_out"]["value"] == 5.5
    assert pair["means"]["tokens_out"]["low"] < 5.5 < pair["means"]["tokens_out"]["high"]
    assert (pair["latency"]["first"]["p50"]["value"], pair["latency"]["second"]["p50"]["value"]) == (100.0, 50.0)
    assert [flip["to"] for flip in pair["flips"]] == ["allow"] * 20
    assert pair["flips"][0]["first"]["status"] == "invalid"


def test_only_pairs_that_both_answered_count() -> None:
    one, other = plan_of(cases=2, repeat=2), plan_of(cases=2)
    first = [row_of(one, 0, 0, 0, allow=True), row_of(one, 0, 0, 1), silent(one, 1, 0, 0), row_of(one, 1, 0, 1)]
    [pair] = comparison_of(first, [row_of(other, 0), row_of(other, 1)], one, other)["pairs"]
    assert (pair["cases"], pair["only_first_allows"]) == (1, 1)


def test_versions_are_paired_by_number_where_both_runs_have_some_in_common() -> None:
    both, one, other = plan_of((POLICY_ONE, POLICY_TWO)), plan_of((POLICY_ONE,)), plan_of((POLICY_TWO,))
    assert _paired(both, both) == [("1.0.0", "1.0.0"), ("1.1.0", "1.1.0")]
    assert _paired(both, one) == [("1.0.0", "1.0.0")]
    assert _paired(one, other) == [("1.0.0", "1.1.0")]
    assert _paired(one, plan_of((RATIONALE_ONE,))) == []


def _paired(one: Plan, other: Plan) -> list[tuple[str, str]]:
    return [(pair["first"], pair["second"]) for pair in comparison_of([], [], one, other)["pairs"]]


def test_rationales_have_no_decisions_but_grounding() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=4)
    first = [row_of(plan, at, ungrounded=("7",) if at < 3 else ()) for at in range(4)]
    [pair] = comparison_of(first, [row_of(plan, at) for at in range(4)], plan, plan)["pairs"]
    assert (pair["p"], pair["difference"], pair["hostile"], pair["flips"]) == (None, None, None, [])
    assert pair["rates"]["grounded"]["difference"]["value"] == 0.75
    assert "target_agreement" not in pair["rates"]


def test_attacks_of_both_runs_stand_side_by_side() -> None:
    plan, without = plan_of(cases=2), plan_of(cases=1)
    first = [row_of(plan, 0), row_of(plan, 1, twin="hostile", twin_of="case-0", attack="dates", allow=True)]
    [pair] = comparison_of(first, [row_of(without, 0)], plan, without)["pairs"]
    assert pair["hostile"]["first"]["deny_to_allow"] == pair["hostile"]["first"]["denied_clean"] == 1
    assert pair["hostile"]["second"] is None
    assert pair["cases"] == 1


def test_an_id_that_stands_for_another_day_is_left_out() -> None:
    plan = plan_of(cases=2)
    second = [row_of(plan, 0), row_of(plan, 1, day="2013-05-05")]
    found = comparison_of([row_of(plan, 0), row_of(plan, 1)], second, plan, plan)
    assert found["cases"] == {"both": 1, "only_first": 0, "only_second": 0, "unlike": 1}
    assert "1 ids stand for another ticker or day in the other run; they are left out." in found["notices"]


def test_latency_with_and_without_waiting_is_not_compared() -> None:
    one, other = plan_of(cases=3), plan_of(cases=3, rate=5.0)
    rows = [row_of(one, at, total_ms=100.0 + at) for at in range(3)]
    found = comparison_of(rows, rows, one, other)
    assert found["pairs"][0]["means"]["latency_ms"] is None
    assert any("their latencies cannot be compared" in notice for notice in found["notices"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dataset": Dataset("other.jsonl", "0" * 64, 1)}, "The runs read different data sets"),
        ({"rules_sha256": "0" * 64}, "The rules differ"),
        ({"concurrency": 64}, "at different rates or widths"),
        ({"repeat": 2}, "The second run is not complete: 1 of 2 items have not been asked."),
    ],
)
def test_what_else_differs_is_said(changed: dict[str, Any], told: str) -> None:
    one = plan_of(cases=1)
    other = replace(one, evaluation_id=UUID(int=9), **changed)
    notices = comparison_of([row_of(one, 0)], [row_of(other, 0)], one, other)["notices"]
    assert [notice for notice in notices if told in notice] == notices
    assert len(notices) == 1


def test_no_case_in_common_is_said_and_nothing_is_compared() -> None:
    plan = plan_of(cases=1)
    found = comparison_of([row_of(plan, 0)], [row_of(plan, 0, case="another")], plan, plan)
    assert found["notices"] == ["The runs have no case in common; there is nothing to compare."]
    [pair] = found["pairs"]
    assert (pair["cases"], pair["agree"], pair["difference"], pair["p"]) == (0, None, None, 1.0)
    assert pair["rates"] == dict.fromkeys(pair["rates"])


def test_a_run_against_itself_differs_in_nothing() -> None:
    made = Simulated(clean=60, hostile=10)
    plan = plan_of((POLICY_ONE, RATIONALE_ONE), cases=made.cases, repeat=2)
    rows = list(simulated(plan, made, ways=[Ways(), Ways()], seed=3))
    found = comparison_of(rows, rows[::-1], plan, plan)
    assert found["notices"] == []
    for pair in found["pairs"]:
        assert pair["same_content"]
        assert pair["flips"] == []
        assert {rate["difference"]["value"] for rate in pair["rates"].values()} == {0.0}
        assert {rate["p"] for rate in pair["rates"].values()} == {1.0}


def test_a_run_that_gives_up_more_often_does_not_look_faster() -> None:
    plan = plan_of(cases=100, rate=5.0)
    first = [row_of(plan, at, total_ms=100.0 + at) for at in range(100)]
    second = [silent(plan, at) if at >= 50 else row_of(plan, at, total_ms=100.0 + at) for at in range(100)]
    found = comparison_of(first, second, plan, plan)
    [pair] = found["pairs"]
    assert pair["latency"]["first"]["p95"]["value"] == 194.0
    assert pair["latency"]["second"]["p50"]["value"] == 149.0
    assert (pair["latency"]["second"]["p95"], pair["means"]["latency_ms"]) == (None, None)
    assert any(
        "The second run got no answer to 50 questions put at planned moments" in each for each in found["notices"]
    )


def test_what_is_valid_at_once_and_grounded_is_counted_as_in_a_summary() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=4)
    first = [row_of(plan, 0), row_of(plan, 1), row_of(plan, 2, cached=True), invalid(plan, 3, ungrounded=("7",))]
    second = [row_of(plan, at) for at in range(4)]
    [pair] = comparison_of(first, second, plan, plan)["pairs"]
    at_once, grounded = (pair["rates"][name]["first"] for name in ("first_validity", "grounded"))
    assert (at_once["n"], at_once["value"]) == (3, pytest.approx(2 / 3))
    assert (grounded["n"], grounded["value"]) == (3, 1.0)
