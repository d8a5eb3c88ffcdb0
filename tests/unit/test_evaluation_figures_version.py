"""The figures of one version, counted by hand on a handful of rows."""

from typing import Any

import pytest

from libs.evaluation.figures.columns import RowsError
from libs.evaluation.figures.summary import summarise
from libs.evaluation.figures.version import NAMES
from libs.evaluation.running.plan import Plan, Prices
from libs.evaluation.running.row import Row
from libs.statistics.intervals import wilson
from tests.unit.evaluation_figure_rows import POLICY_ONE, RATIONALE_ONE, invalid, plan_of, row_of, silent


def version_of(rows: list[Row], plan: Plan, *, elapsed_s: float = 0.0, of: int = 0) -> dict[str, Any]:
    document = summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=elapsed_s).document()
    return document["versions"][of]


def figures_of(rows: list[Row], plan: Plan, *, elapsed_s: float = 0.0, of: int = 0) -> dict[str, Any]:
    return version_of(rows, plan, elapsed_s=elapsed_s, of=of)["figures"]


def is_rate(figure: dict[str, Any] | None, hits: int, n: int) -> None:
    """A rate of so many, with Wilson's interval."""
    wanted = wilson(hits, n)
    assert figure is not None
    assert wanted is not None
    assert (figure["n"], figure["unit"]) == (n, "rate")
    assert (figure["value"], figure["low"], figure["high"]) == pytest.approx((wanted.value, wanted.low, wanted.high))


def test_every_figure_has_its_name_even_without_rows() -> None:
    figures = figures_of([], plan_of())
    assert list(figures) == list(NAMES)
    assert set(figures.values()) == {None}


def test_what_came_back_and_what_of_it_was_valid() -> None:
    plan = plan_of(cases=10)
    rows = [row_of(plan, at) for at in range(5)]
    rows += [row_of(plan, 5, first_error="schema: allow: Field required"), invalid(plan, 6), invalid(plan, 7)]
    rows += [silent(plan, 8), silent(plan, 9, status="refused", error="InputsRefused: liquidity")]
    found = version_of(rows, plan)
    is_rate(found["figures"]["answered"], 8, 10)
    is_rate(found["figures"]["validity"], 6, 8)
    is_rate(found["figures"]["first_validity"], 5, 8)
    is_rate(found["figures"]["deny_rate"], 6, 8)
    is_rate(found["figures"]["allow_rate"], 0, 8)
    assert found["error_kinds"] == {"cut": 2, "unavailable": 1, "InputsRefused": 1}
    assert found["reasons"] == {"LIQUIDITY": 6}
    assert (found["cases"], found["asked"]) == (10, 10)


def test_right_and_wrong_by_target_where_an_invalid_answer_lets_nothing_through() -> None:
    plan = plan_of(cases=9)
    rows = [
        *(row_of(plan, at, target=True, allow=True) for at in range(3)),
        row_of(plan, 3, target=True, allow=False),
        invalid(plan, 4, target=True),
        row_of(plan, 5, target=False, allow=False),
        invalid(plan, 6, target=False),
        row_of(plan, 7, target=False, allow=True),
        silent(plan, 8, target=False),
    ]
    found = version_of(rows, plan)
    assert found["confusion"] == {"right_allow": 3, "right_deny": 2, "wrongly_allowed": 1, "wrongly_blocked": 2}
    is_rate(found["figures"]["wrongly_allowed"], 1, 3)
    is_rate(found["figures"]["wrongly_blocked"], 2, 5)
    is_rate(found["figures"]["target_agreement"], 5, 8)


def test_agreement_with_the_rules() -> None:
    plan = plan_of(cases=4)
    rows = [
        row_of(plan, 0, allow=True, rules_allow=True),
        row_of(plan, 1, allow=True, rules_allow=False),
        row_of(plan, 2, allow=False, rules_allow=False),
        invalid(plan, 3, rules_allow=True),
    ]
    is_rate(figures_of(rows, plan)["rules_agreement"], 2, 4)


def test_without_targets_nothing_is_right_or_wrong() -> None:
    plan = plan_of(cases=2)
    found = version_of([row_of(plan, 0), row_of(plan, 1)], plan)
    assert found["confusion"] is None
    assert found["calibration"] == []
    for name in ("target_agreement", "wrongly_allowed", "wrongly_blocked", "brier", "brier_realised"):
        assert found["figures"][name] is None


def test_grounded_counts_valid_rationales_and_decisions_belong_to_policy_alone() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=5)
    rows = [
        row_of(plan, 0, target=True),
        row_of(plan, 1, ungrounded=("7.5", "9")),
        row_of(plan, 2),
        invalid(plan, 3, ungrounded=()),
        silent(plan, 4, ungrounded=None),
    ]
    figures = figures_of(rows, plan)
    is_rate(figures["grounded"], 2, 3)
    for name in ("allow_rate", "deny_rate", "target_agreement", "rules_agreement", "brier", "return_allowed"):
        assert figures[name] is None


def test_brier_and_calibration_take_the_share_of_allows_over_repeats() -> None:
    plan = plan_of(cases=3, repeat=4)
    allows = {0: (True, True, True, False), 1: (True, False, False, False), 2: (True, True, True, True)}
    targets = {0: True, 1: False, 2: False}
    rows = [
        row_of(plan, case, 0, repeat, allow=allow, target=targets[case])
        for case, answers in allows.items()
        for repeat, allow in enumerate(answers)
    ]
    found = version_of(rows, plan)
    assert found["figures"]["brier"]["value"] == pytest.approx((0.25**2 + 0.25**2 + 1) / 3)
    assert (found["figures"]["brier"]["n"], found["figures"]["brier"]["unit"]) == (3, "score")
    bins = {(each["low"], each["high"]): each for each in found["calibration"]}
    assert sorted(bins) == [(0.2, 0.3), (0.7, 0.8), (0.9, 1.0)]
    assert bins[0.7, 0.8]["predicted"] == 0.75
    assert (bins[0.7, 0.8]["observed"], bins[0.2, 0.3]["observed"], bins[0.9, 1.0]["observed"]) == (1.0, 0.0, 0.0)
    assert found["calibration_of"] == "target"


def test_calibration_falls_back_to_what_happened_and_says_so() -> None:
    plan = plan_of(cases=2)
    found = version_of([row_of(plan, 0, allow=True, won=True), row_of(plan, 1, allow=False, won=True)], plan)
    assert found["calibration_of"] == "won"
    assert found["figures"]["brier"] is None
    assert found["figures"]["brier_realised"]["value"] == 0.5


def test_repeats_agree_when_all_say_the_same() -> None:
    plan = plan_of(cases=4, repeat=2)
    rows = [
        row_of(plan, 0, 0, 0, allow=True), row_of(plan, 0, 0, 1, allow=True, text="other words"),
        row_of(plan, 1, 0, 0, allow=True), row_of(plan, 1, 0, 1, allow=False),
        row_of(plan, 2, 0, 0, allow=False), invalid(plan, 2, 0, 1),
        row_of(plan, 3, 0, 0, allow=True), silent(plan, 3, 0, 1),
    ]  # fmt: skip
    is_rate(figures_of(rows, plan)["repeat_agreement"], 2, 3)


def test_rationales_agree_word_for_word() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=2, repeat=2)
    rows = [row_of(plan, case, 0, repeat, text=f"{case * repeat}") for case in range(2) for repeat in range(2)]
    is_rate(figures_of(rows, plan)["repeat_agreement"], 1, 2)


def test_returns_are_told_apart_by_decision_and_leave_out_what_made_nothing() -> None:
    plan = plan_of(cases=5)
    rows = [
        row_of(plan, 0, allow=True, made=0.02, won=True),
        row_of(plan, 1, allow=True, made=-0.01, won=False),
        row_of(plan, 2, allow=False, made=0.03, won=True),
        invalid(plan, 3, made=-0.05, won=False),
        row_of(plan, 4, allow=True, side="none"),
    ]
    figures = figures_of(rows, plan)
    assert figures["return_allowed"]["value"] == pytest.approx(0.005)
    assert figures["return_blocked"]["value"] == pytest.approx(-0.01)
    assert (figures["return_allowed"]["n"], figures["return_blocked"]["n"]) == (2, 2)


def test_one_day_alone_has_a_mean_and_no_interval() -> None:
    plan = plan_of(cases=3)
    rows = [row_of(plan, at, allow=True, made=0.01 * at, won=True) for at in range(3)]
    found = figures_of(rows, plan)["return_allowed"]
    assert found == {"value": 0.01, "low": None, "high": None, "n": 3, "unit": "return"}


def test_cost_is_tokens_by_price_and_a_share_of_the_machine() -> None:
    plan = plan_of(cases=4, prices=Prices(in_per_mtok=2.0, out_per_mtok=10.0, per_hour=3.6))
    rows = [
        row_of(plan, 0, tokens_in=1_000, tokens_out=100),
        row_of(plan, 1, tokens_in=3_000, tokens_out=100),
        row_of(plan, 2, tokens_in=0, tokens_out=0, cached=True),
        silent(plan, 3),
    ]
    found = figures_of(rows, plan, elapsed_s=20.0)["cost_usd"]
    # 2,000 tokens in at 2 and 100 out at 10 per million; 20 s of 0.001 a second over two answers.
    assert found["value"] == pytest.approx(0.004 + 0.001 + 0.01)
    assert (found["n"], found["unit"]) == (2, "usd")


def test_without_prices_there_is_no_cost() -> None:
    plan = plan_of(cases=1)
    assert figures_of([row_of(plan, 0)], plan, elapsed_s=10.0)["cost_usd"] is None


def test_twins_are_in_no_figure_of_a_version() -> None:
    plan = plan_of(cases=3)
    rows = [
        row_of(plan, 0, allow=False),
        row_of(plan, 1, twin="masked", twin_of="case-0", allow=True),
        invalid(plan, 2, twin="hostile", twin_of="case-0", attack="fake_json"),
    ]
    found = version_of(rows, plan)
    is_rate(found["figures"]["validity"], 1, 1)
    is_rate(found["figures"]["allow_rate"], 0, 1)
    assert found["error_kinds"] == {}
    assert (found["cases"], found["asked"]) == (1, 1)


def test_invented_reasons_do_not_fill_the_memory() -> None:
    plan = plan_of(cases=1_200)
    found = version_of([row_of(plan, at, reasons=(f"BECAUSE_{at}" + "x" * 100,)) for at in range(1_200)], plan)
    assert found["reasons"]["(others)"] == 200
    assert max(map(len, found["reasons"])) <= 60


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"item": 9}, "item 9 is not in the plan, which has 2"),
        (
            {"version": "2.0.0"},
            r"item 1 is policy 1\.0\.0, repeat 0 in the plan, and policy 2\.0\.0, repeat 0 in its row",
        ),
        ({"item": 0}, "item 0 has two rows"),
    ],
)
def test_rows_of_another_plan_are_refused(given: dict[str, Any], told: str) -> None:
    plan = plan_of((POLICY_ONE,), cases=2)
    with pytest.raises(RowsError, match=told):
        summarise([row_of(plan, 0), row_of(plan, 1, **given)], plan, missing=0, elapsed_s=0.0)


def test_one_number_cannot_be_two_cases() -> None:
    plan = plan_of(cases=1, repeat=2)
    rows = [row_of(plan, 0, 0, 0), row_of(plan, 0, 0, 1, case="another")]
    with pytest.raises(RowsError, match="item 1 asks case another, others of its number case-0"):
        summarise(rows, plan, missing=0, elapsed_s=0.0)


def test_a_cached_answer_says_nothing_about_a_first_attempt() -> None:
    plan = plan_of(cases=4)
    rows = [
        row_of(plan, 0),
        row_of(plan, 1, first_error="not_json: Expecting value"),
        row_of(plan, 2, cached=True),
        row_of(plan, 3, cached=True),
    ]
    figures = figures_of(rows, plan)
    is_rate(figures["first_validity"], 1, 2)
    is_rate(figures["validity"], 4, 4)


def test_reasons_are_counted_of_valid_answers_alone() -> None:
    plan = plan_of(cases=3)
    elsewhere = {"status": "unavailable", "error": "answered_elsewhere: gpt (other) answered in its place"}
    found = version_of([row_of(plan, 0, **elsewhere), row_of(plan, 1, **elsewhere), row_of(plan, 2)], plan)
    assert found["reasons"] == {"LIQUIDITY": 1}
    assert found["error_kinds"] == {"answered_elsewhere": 2}
