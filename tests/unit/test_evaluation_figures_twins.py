"""Answers side by side: versions, masked twins, hostile twins, and which cases are shown first."""

from typing import Any

import pytest

from libs.evaluation.figures.pairs import LISTED
from libs.evaluation.figures.summary import summarise
from libs.evaluation.figures.texts import LONGEST
from libs.evaluation.figures.worst import EACH, MOST
from libs.evaluation.running.plan import Plan
from libs.evaluation.running.row import Row
from libs.statistics.intervals import wilson
from libs.statistics.paired import mcnemar, paired_difference
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


def summary_of(rows: list[Row], plan: Plan) -> dict[str, Any]:
    return summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=1.0).document()


def hostile(plan: Plan, case: int, of: int, version: int = 0, repeat: int = 0, **given: Any) -> Row:
    """An answer to a hostile twin."""
    usual = {"case": f"twin-{case}", "twin": "hostile", "twin_of": f"case-{of}", "attack": "fake_json"}
    return row_of(plan, case, version, repeat, **(usual | given))


def test_versions_are_paired_on_cases_that_both_answered() -> None:
    plan = plan_of(BOTH, cases=6)
    rows = [
        row_of(plan, 0, 0, allow=True), row_of(plan, 0, 1, allow=True),
        row_of(plan, 1, 0, allow=True), row_of(plan, 1, 1, allow=False),
        row_of(plan, 2, 0, allow=True), invalid(plan, 2, 1),
        row_of(plan, 3, 0, allow=False), row_of(plan, 3, 1, allow=True),
        row_of(plan, 4, 0, allow=True), silent(plan, 4, 1),
        invalid(plan, 5, 0), row_of(plan, 5, 1, allow=False),
    ]  # fmt: skip
    [pair] = summary_of(rows, plan)["pairs"]
    difference = paired_difference(1, 2, n=5)
    assert difference is not None
    assert (pair["prompt"], pair["first"], pair["second"], pair["cases"]) == ("policy", "1.0.0", "1.1.0", 5)
    assert (pair["only_first_allows"], pair["only_second_allows"]) == (2, 1)
    assert pair["p"] == mcnemar(2, 1)
    assert pair["agree"]["value"] == 0.4
    # The second less the first: the newer version allows less.
    assert pair["difference"]["value"] == pytest.approx(difference.value) == -0.2
    assert pair["difference"]["low"] == pytest.approx(difference.low)


def test_a_pair_is_the_first_repeat_that_both_answered() -> None:
    plan = plan_of(BOTH, cases=1, repeat=3)
    rows = [
        row_of(plan, 0, 0, 0, allow=True), silent(plan, 0, 1, 0),
        row_of(plan, 0, 0, 1, allow=False), row_of(plan, 0, 1, 1, allow=True),
        row_of(plan, 0, 0, 2, allow=True), row_of(plan, 0, 1, 2, allow=True),
    ]  # fmt: skip
    [pair] = summary_of(rows, plan)["pairs"]
    assert (pair["cases"], pair["only_first_allows"], pair["only_second_allows"]) == (1, 0, 1)


def test_rationales_decide_nothing_and_are_not_paired() -> None:
    plan = plan_of((RATIONALE_ONE, POLICY_ONE), cases=2)
    rows = [row_of(plan, 0, 0), row_of(plan, 0, 1), hostile(plan, 1, 0, 0, allow=None), hostile(plan, 1, 0, 1)]
    found = summary_of(rows, plan)
    assert found["pairs"] == []
    assert [each["prompt"] for each in found["hostile"]] == ["policy"]


def test_masked_twins_show_what_names_and_dates_did() -> None:
    plan = plan_of(cases=6)
    twin: dict[str, Any] = {"twin": "masked"}
    rows = [
        row_of(plan, 0, allow=True), row_of(plan, 3, **twin, twin_of="case-0", allow=False),
        row_of(plan, 1, allow=True), row_of(plan, 4, **twin, twin_of="case-1", allow=True),
        row_of(plan, 2, allow=False), row_of(plan, 5, **twin, twin_of="not here", allow=True),
    ]  # fmt: skip
    [masked] = summary_of(rows, plan)["masked"]
    assert (masked["pairs"], masked["only_clean_allows"], masked["only_masked_allows"]) == (2, 1, 0)
    assert masked["agree"]["value"] == 0.5
    assert masked["p"] == 1.0


def test_flips_are_counted_in_every_repeat_and_shown_word_for_word() -> None:
    plan = plan_of(cases=5, repeat=2)
    rows = [
        row_of(plan, 0, 0, 0, allow=False, text="no", reasons=("LIQUIDITY",)), row_of(plan, 0, 0, 1, allow=False),
        row_of(plan, 1, 0, 0, allow=True), invalid(plan, 1, 0, 1),
        hostile(plan, 2, 0, 0, 0, allow=True, text="yes", rules_allow=True), hostile(plan, 2, 0, 0, 1, allow=False),
        hostile(plan, 3, 1, 0, 0, allow=False), hostile(plan, 3, 1, 0, 1, allow=True, rules_allow=False),
        hostile(plan, 4, 0, 0, 0, attack="dates", allow=False), silent(plan, 4, 0, 1, case="twin-4", twin="hostile",
                                                                      twin_of="case-0", attack="dates"),
    ]  # fmt: skip
    [found] = summary_of(rows, plan)["hostile"]
    assert (found["pairs"], found["denied_clean"], found["deny_to_allow"], found["allow_to_deny"]) == (5, 4, 2, 1)
    assert found["unanswered"] == 1
    assert (found["flip_rate"]["value"], found["flip_rate"]["n"]) == (0.5, 4)
    assert found["by_attack"] == {
        "dates": {"pairs": 1, "denied_clean": 1, "flips": 0},
        "fake_json": {"pairs": 4, "denied_clean": 3, "flips": 2},
    }
    first, second = found["flips"]
    assert first == {
        "case": "case-0", "twin": "twin-2", "attack": "fake_json", "repeat": 0, "acted": True,
        "clean": {"text": "no", "reasons": ["LIQUIDITY"]}, "hostile": {"text": "yes", "reasons": []},
    }  # fmt: skip
    # The clean answer was invalid, which denies; and the rules would have stopped what the attack opened.
    assert (second["twin"], second["repeat"], second["acted"]) == ("twin-3", 1, False)


def test_twins_of_one_case_that_turn_together_tell_as_much_as_the_case() -> None:
    plan = plan_of(cases=30)
    rows = [row_of(plan, at) for at in range(10)]
    rows += [hostile(plan, 10 + at, at % 10, allow=at % 10 < 4) for at in range(20)]
    [found] = summary_of(rows, plan)["hostile"]
    wanted = wilson(4, 10)
    assert wanted is not None
    assert found["flip_rate"]["n"] == 20
    assert (found["flip_rate"]["low"], found["flip_rate"]["high"]) == pytest.approx((wanted.low, wanted.high))


def test_many_flips_are_all_counted_and_the_first_are_shown() -> None:
    n = LISTED + 3
    plan = plan_of(cases=2 * n)
    rows = [row_of(plan, at, allow=False) for at in range(n)]
    rows += [hostile(plan, n + at, at, allow=True) for at in range(n)]
    document = summary_of(rows, plan)
    [found] = document["hostile"]
    assert found["deny_to_allow"] == n
    assert len(found["flips"]) == LISTED
    assert f"Of {n} flips of policy 1.0.0, the first {LISTED} are shown." in document["notices"]


def test_the_worst_come_first_and_each_case_once() -> None:
    plan = plan_of(BOTH, cases=9)
    known: dict[int, dict[str, Any]] = {
        0: {"target": False, "made": 0.01, "won": True},
        1: {"target": False, "made": -0.01, "won": False},
        2: {"target": False, "made": -0.04, "won": False},
        4: {"made": -0.02, "won": False},
    }
    rows = [row_of(plan, at, 1, allow=False, **known.get(at, {})) for at in (0, 1, 2, 3)]
    rows += [row_of(plan, at, 0, allow=True, **known.get(at, {})) for at in (0, 1, 2, 3, 4)]
    rows += [invalid(plan, 5, 0, target=True), row_of(plan, 6, 0, allow=False, target=True)]
    rows += [row_of(plan, 7, 0, allow=False), hostile(plan, 8, 7, 0, allow=True)]
    worst = summary_of(rows, plan)["worst"]
    assert [(each["case"], each["kind"]) for each in worst] == [
        ("twin-8", "flip"),
        ("case-2", "wrongly_allowed_lost"),
        ("case-1", "wrongly_allowed_lost"),
        ("case-0", "wrongly_allowed"),
        ("case-4", "allowed_lost"),
        ("case-3", "versions_differ"),
        ("case-5", "invalid"),
        ("case-6", "wrongly_blocked"),
    ]
    assert "fake_json" in worst[0]["why"]
    assert [(each["version"], each["allow"]) for each in worst[1]["answers"]] == [("1.0.0", True), ("1.1.0", False)]
    failed = worst[6]["answers"][0]
    assert (failed["status"], failed["allow"], failed["error"]) == ("invalid", None, "cut: the tokens ran out")
    assert (worst[6]["ticker"], worst[6]["day"]) == ("AAPL", "2012-01-03")


def test_many_of_one_kind_leave_room_for_the_others() -> None:
    plan = plan_of(cases=200)
    rows = [row_of(plan, at, allow=True, target=False) for at in range(100)]
    rows += [invalid(plan, at, target=None) for at in range(100, 103)]
    rows += [row_of(plan, at, allow=False, target=True) for at in range(103, 200)]
    kinds = [each["kind"] for each in summary_of(rows, plan)["worst"]]
    assert len(kinds) == MOST
    assert kinds == sorted(kinds, key=["wrongly_allowed", "invalid", "wrongly_blocked"].index)
    assert kinds.count("invalid") == 3
    assert kinds.count("wrongly_blocked") == EACH


def test_a_rationale_with_numbers_from_nowhere_is_shown() -> None:
    plan = plan_of((RATIONALE_ONE,), cases=2)
    [worst] = summary_of([row_of(plan, 0), row_of(plan, 1, ungrounded=("7.5",), text="up 7.5")], plan)["worst"]
    assert (worst["case"], worst["kind"], worst["answers"][0]["text"]) == ("case-1", "ungrounded", "up 7.5")


def test_a_text_without_end_is_cut() -> None:
    plan = plan_of(cases=1)
    [worst] = summary_of([invalid(plan, 0, text="x" * 50_000)], plan)["worst"]
    assert worst["answers"][0]["text"].startswith("x" * LONGEST + " … (cut, 50000 characters)")


def test_texts_are_found_again_whatever_the_block_they_lie_in() -> None:
    plan = plan_of(cases=400)
    rows = [invalid(plan, at, text=f"{at} " + "words\n" * 300) for at in range(400)]
    rows.reverse()
    for each in summary_of(rows, plan)["worst"]:
        assert each["answers"][0]["text"].startswith(f"{each['case'].removeprefix('case-')} words\n")
