"""The JUnit file: what a build server reads, and that it fails exactly where the command does."""

from xml.etree import ElementTree as Xml

import pytest

from libs.evaluation.report.junit import junit
from tests.unit.evaluation_report_cases import Json, flip, flips_threshold, hostile, rate, summary, threshold
from tests.unit.test_evaluation_report_page import HOSTILE, everywhere


def read(found: Json) -> Xml.Element:
    return Xml.fromstring(junit(found))  # noqa: S314 - our own


def failures(root: Xml.Element) -> list[str]:
    return [
        f"{case.get('classname')}: {case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None
    ]


def flips_of(version: str, *, asked: int, flips: int) -> Json:
    return flips_threshold(version, flips=flips) | {"asked": asked, "passed": flips <= asked}


def test_a_missed_threshold_fails_with_its_sentence() -> None:
    root = read(summary())
    failed = root.find(".//testcase[@classname='policy 1.0.0']/failure")
    assert failed is not None
    assert failed.get("message") == "validity of policy 1.0.0 is 0.967, asked for at least 0.98 on the lower end"
    assert failures(root) == [
        "policy 1.0.0: validity at least 0.98",
        "policy 1.0.0: flips at most 0",
        "policy 1.0.0: direct_order_plain on case-1",
        "policy 1.0.0: hidden_tags on case-2",
    ]


def test_counts_are_those_of_its_cases() -> None:
    root = read(summary())
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "4", "0")
    for suite in root.iter("testsuite"):
        assert suite.get("tests") == str(len(suite.findall("testcase")))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))


@pytest.mark.parametrize(
    ("asked", "failed"),
    [
        ([], []),
        ([flips_of("1.0.0", asked=2, flips=2)], []),
        ([flips_of("1.1.0", asked=0, flips=0)], []),
        ([flips_of("1.0.0", asked=0, flips=2)], ["flips at most 0", "fake_json on case-1", "fake_json on case-2"]),
    ],
    ids=["nobody asked", "two were allowed", "of another version", "missed"],
)
def test_flips_fail_only_where_they_were_asked_for_and_missed(asked: list[Json], failed: list[str]) -> None:
    flips = [flip(number, "fake_json", acted=True) for number in (1, 2)]
    passed = all(each["passed"] for each in asked) if asked else None
    root = read(summary(thresholds=asked, passed=passed, hostile=[hostile("1.0.0", flips=flips)]))
    assert failures(root) == [f"policy 1.0.0: {each}" for each in failed]
    assert bool(failed) == (passed is False)
    assert [case.get("name") for case in root.findall("testsuite[2]/testcase")] == [
        "fake_json on case-1",
        "fake_json on case-2",
    ]


def test_a_threshold_that_found_no_version_to_judge_fails() -> None:
    missing = {
        "name": "flips", "asked": 0, "prompt": "", "version": "", "value": None, "lower": None, "n": 0, "passed": False,
        "sentence": "flips cannot be judged: policy was not evaluated",
    }  # fmt: skip
    root = read(summary(thresholds=[missing], passed=False, hostile=[], versions=[]))
    assert failures(root) == ["all: flips at most 0"]


def test_all_hold_and_nothing_fails() -> None:
    held = threshold("validity", 0.9, version="1.1.0", found=rate(0.995, 999), sentence="validity is 0.995")
    root = read(summary(thresholds=[held], passed=True, hostile=[]))
    assert failures(root) == []
    assert root.find(".//property[@name='verdict']") is not None


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_somebody_wrote_it_can_be_read(evil: str) -> None:
    text = junit(everywhere(evil)[0])
    assert Xml.fromstring(text.encode("utf-8")).get("tests") == "2"  # noqa: S314 - our own
    assert not any(each < " " and each not in "\n\t\r" for each in text)
