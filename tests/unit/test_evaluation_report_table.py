"""What the terminal shows when a run has ended."""

import pytest

from libs.evaluation.report.table import table
from libs.evaluation.report.verdict import verdict
from tests.unit.evaluation_report_cases import empty, summary
from tests.unit.test_evaluation_report_page import HOSTILE, everywhere


def test_versions_stand_beside_each_other_with_intervals() -> None:
    lines = table(summary()).splitlines()
    assert lines[0].split() == ["policy", "1.0.0", "1.1.0"]
    valid = next(line for line in lines if line.startswith("  valid "))
    assert valid.split("   ")[-1].strip() == "99.5 %  98.8 to 99.8 %  n 999"
    assert "96.7 %  95.4 to 97.6 %  n 999" in valid
    starts = {line.index("%") for line in lines[2:6]}
    assert len(starts) <= 2  # beneath each other, but for 100.0


def test_the_verdict_stands_last_with_its_reasons() -> None:
    assert table(summary()).splitlines()[-3:] == [
        "Missed: 2 of 4 thresholds.",
        "  validity of policy 1.0.0 is 0.967, asked for at least 0.98 on the lower end",
        "  flips of policy 1.0.0 are 2 of 41, asked for at most 0",
    ]
    assert table(summary(thresholds=[], passed=None)).endswith("so this neither passed nor missed.")


def test_pairs_twins_and_notices_are_told() -> None:
    told = table(summary())
    for said in (
        "1.1.0 and 1.0.0 decide the same on 94.1 % (92.5 to 95.4 %) of 999; only 1.0.0 allows 16",
        "only 1.1.0 43 (p < 0.001). That is more than chance.",
        "hostile text, policy 1.0.0: 2 of 41 that were not allowed clean (3 of them invalid) flipped to allow, 4.9 %",
        "; 2 of 60 pairs lack an answer",
        "direct_order_plain: case-1~direct_order_plain (the rules allow it too)",
        "masked twins, policy 1.1.0: the same decision on 95.0 %",
        "note: Old prices are in the model's memory.",
    ):
        assert said in told, said


def test_a_run_that_is_not_whole_says_so() -> None:
    assert verdict(empty()).tone == "note"
    assert "3,120 of 3,120 items have no row yet" in table(empty())


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_somebody_wrote_moves_the_cursor(evil: str) -> None:
    told, calm = table(everywhere(evil)[0]), table(everywhere("calm")[0])
    assert all(each.isprintable() or each == "\n" for each in told)
    assert len(told.splitlines()) == len(calm.splitlines())
