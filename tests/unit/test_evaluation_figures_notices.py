"""What a reader is told beside the figures, exactly where it matters."""

from typing import Any

import pytest

from libs.evaluation.figures.notices import MEMORY, ONCE
from libs.evaluation.figures.summary import summarise
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from tests.unit.evaluation_figure_rows import RATIONALE_ONE, invalid, plan_of, row_of, silent

CLOSED = "Latency is without waiting for a slot; --rate measures it under load."
BEYOND = (
    "policy 1.0.0: latency_p95_ms, first_token_p95_ms lie beyond the time limits and have no figure, "
    "since 2 of 4 questions got no answer."
)
FEW = "The 99th percentile of latency takes at least 1,000 cases."


def notices_of(rows: list[Row], plan: Plan) -> list[str]:
    return summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=1.0).document()["notices"]


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({}, []),
        ({"made": 0.01}, [MEMORY]),
        ({"won": True}, [MEMORY, ONCE]),
        ({"target": True}, [ONCE]),
    ],
)
def test_old_prices_are_in_the_models_memory_wherever_outcomes_are_shown(
    known: dict[str, Any], told: list[str]
) -> None:
    plan = plan_of(cases=1)
    assert notices_of([row_of(plan, 0, **known)], plan) == [*told, CLOSED, FEW]


def test_a_rationale_has_no_brier_score_to_speak_of() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=1)
    assert notices_of([row_of(plan, 0, target=True, won=True, made=0.01)], plan) == [CLOSED, FEW]


def test_several_repeats_make_a_probability() -> None:
    plan = plan_of(cases=1, repeat=2)
    assert ONCE not in notices_of([row_of(plan, 0, 0, repeat, target=True) for repeat in range(2)], plan)


def test_what_is_missing_silent_invalid_or_cached_is_counted() -> None:
    plan = plan_of(cases=6, rate=3.0)
    rows = [silent(plan, 0), silent(plan, 1), invalid(plan, 2), row_of(plan, 3, cached=True), row_of(plan, 4)]
    assert notices_of(rows, plan) == [
        "The run is not complete: 1 of 6 items have not been asked.",
        "2 of 5 items got no answer; they count in `answered` and in latency, as slower than every answer.",
        "1 answer is no valid decision; each counts as a deny, as it would at the gate.",
        "1 answer is from the cache and left out of latency, tokens and cost.",
        "Latency is as a caller sees it who comes at a planned moment: waiting for a slot is in it.",
        BEYOND,
        FEW,
    ]


def test_without_a_rate_what_got_no_answer_has_no_latency() -> None:
    plan = plan_of(cases=2)
    found = notices_of([silent(plan, 0), row_of(plan, 1)], plan)
    assert found == ["1 of 2 items got no answer; they count in `answered` and nowhere else.", CLOSED, FEW]


def test_without_rows_only_that_is_said() -> None:
    plan = plan_of(cases=3)
    assert notices_of([], plan) == ["The run is not complete: 3 of 3 items have not been asked."]
