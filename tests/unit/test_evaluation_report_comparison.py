"""Two runs beside each other, as a page and as lines, from simulated answers; and a page of a whole simulated run."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from libs.evaluation.figures.compare import compare
from libs.evaluation.figures.summary import summarise
from libs.evaluation.report.comparison import comparison_page, comparison_table, title
from libs.evaluation.report.junit import junit
from libs.evaluation.report.page import page, shown_cases
from libs.evaluation.report.paths import found_at
from libs.evaluation.report.table import table
from libs.evaluation.running.plan import Prices
from tests.unit.evaluation_figure_rows import (
    POLICY_ONE,
    POLICY_TWO,
    RATIONALE_ONE,
    Simulated,
    Ways,
    plan_of,
    simulated,
)
from tests.unit.evaluation_report_cases import HEADLINES, ORDER, Json, case
from tests.unit.evaluation_report_reading import Read, leaves, says
from tests.unit.test_evaluation_report_page import HOSTILE

MADE = Simulated(clean=120, masked=20, hostile=30)
WAYS = (Ways(wrongly_allowed=0.06, flips=0.3), Ways(invalid=0.05, wrongly_blocked=0.05), Ways(latency_ms=300))


@cache
def compared() -> Json:
    first = plan_of((POLICY_ONE, RATIONALE_ONE), cases=MADE.cases)
    second = replace(plan_of((POLICY_TWO, RATIONALE_ONE), cases=MADE.cases), name="candidate", stamp={"commit": "99"})
    one = simulated(first, MADE, ways=[WAYS[0], WAYS[2]], seed=1)
    other = simulated(second, MADE, ways=[WAYS[1], WAYS[2]], seed=2)
    return json.loads(json.dumps(compare(one, other, first_plan=first, second_plan=second).document()))


@cache
def summarised() -> Json:
    plan = plan_of(
        (POLICY_ONE, POLICY_TWO, RATIONALE_ONE), cases=MADE.cases, repeat=2, prices=Prices(0.2, 0.6, 2.5),
        thresholds=("validity=0.9", "flips=0"),
    )  # fmt: skip
    found = summarise(simulated(plan, MADE, ways=WAYS, seed=3), plan, missing=0, elapsed_s=93.4)
    return json.loads(json.dumps(found.document()))


def checked(read: Read, found: Json) -> set[str]:
    """The paths of all numbers shown, each held against what it was made of."""
    for shown in read.numbers:
        exact = found_at(found, shown.path)
        assert json.loads(shown.value) == exact, shown
        assert says(shown, exact), shown
    return {shown.path for shown in read.numbers}


def test_a_whole_simulated_run_has_a_page_with_its_numbers() -> None:
    found = summarised()
    shown = {
        name: case(name, headlines=((ORDER, *HEADLINES) if "hostile" in name else HEADLINES))
        for name in shown_cases(found)
    }
    read = Read(page(found, shown))
    assert read.open == []
    paths = checked(read, found)
    figures = {each for each in leaves(found["versions"]) if ".figures." in each}
    assert {f"versions.{each}" for each in figures} <= paths
    assert "The case is not at hand any more." not in read.words
    assert found["passed"] is False
    assert "Missed:" in table(found)
    assert "ThresholdMissed" in junit(found)


def test_a_comparison_has_a_page_with_its_numbers() -> None:
    found = compared()
    html = comparison_page(found)
    read = Read(html)
    assert read.open == []
    assert read.tags["script"] == read.tags["link"] == read.tags["img"] == 0
    assert "default-src 'none'" in html
    paths = checked(read, found)
    beside = r"v|(first|second)\..*|.*\.(n|cases)|pairs\.\d+\.difference\..*"  # the last: the rate of allows, once more
    assert {each for each in leaves(found) if not re.fullmatch(beside, each)} <= paths


def test_it_says_what_changed() -> None:
    said = " ".join(Read(comparison_page(compared())).words.split())
    for each in (
        "candidate against trial", "policy 1.0.0, then 1.1.0.", "rationale 1.0.0 in both.", "120 cases in both",
        "now allowed", "now not allowed", "flipped to allow", "commit differs", "python differs",
    ):  # fmt: skip
        assert each in said, each
    assert "dirty differs False" not in said


def test_the_lines_say_the_same() -> None:
    found = compared()
    lines = comparison_table(found)
    policy = found["pairs"][0]
    assert "policy 1.0.0, then 1.1.0" in lines
    assert (
        f"only the first allows {policy['only_first_allows']}, only the second {policy['only_second_allows']}" in lines
    )
    assert f"hostile text flipped {policy['hostile']['first']['deny_to_allow']} of" in lines
    assert lines.count("more, all on the page") == 1


@pytest.mark.parametrize(
    ("second", "same", "said"),
    [("1.1.0", False, "policy 1.0.0, then 1.1.0"), ("1.0.0", True, "policy 1.0.0 in both"),
     ("1.0.0", False, "policy 1.0.0 in both, whose content changed between the runs")],
)  # fmt: skip
def test_what_is_held_against_what(second: str, same: bool, said: str) -> None:
    assert title({"prompt": "policy", "first": "1.0.0", "second": second, "same_content": same}) == said


def wicked(evil: str) -> Json:
    """A comparison in which a stranger wrote all texts."""
    found: Json = json.loads(json.dumps(compared()))
    said: Json = {"status": evil, "text": evil, "reasons": [evil], "error": evil}
    flip: Json = {"case": evil, "ticker": evil, "day": evil, "to": "allow", "first": said, "second": said}
    ran: Json = {"name": evil, "made_at": evil, "stamp": {"model": evil}}
    pair: Any = found["pairs"][0] | {"first": evil, "flips": [flip], "prompt": evil}
    return found | {"first": found["first"] | ran, "second": found["second"] | ran, "notices": [evil], "pairs": [pair]}


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_somebody_wrote_is_html(evil: str) -> None:
    seen, calm = Read(comparison_page(wicked(evil))), Read(comparison_page(wicked("calm")))
    signs = {"span", "mark"}
    assert seen.open == []
    assert {tag: n for tag, n in seen.tags.items() if tag not in signs} == {
        tag: n for tag, n in calm.tags.items() if tag not in signs
    }
    assert {(tag, name) for tag, name in seen.attributes if tag not in signs} <= calm.attributes
    assert all(each.isprintable() or each == "\n" for each in comparison_table(wicked(evil)))


def test_runs_with_nothing_in_common_have_a_page_as_well() -> None:
    found = compared() | {"pairs": [], "notices": ["The runs have no case in common; there is nothing to compare."]}
    read = Read(comparison_page(found))
    assert read.open == []
    assert "no version to hold against each other" in read.words
    assert "nothing to compare" in comparison_table(found)
