"""Exact replay where the calls behind an answer are kept no more: what stands in the record still decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.replay.check import Checked, check_all
from tests.unit.replay_check_cases import (
    PROMPTS,
    RULES_FILE,
    a_case,
    cases,
    changed,
    checker,
    decided,
    edited,
    first,
)


async def test_an_answer_whose_calls_are_gone_is_counted_and_its_rules_are_still_held(tmp_path: Path) -> None:
    case = replace(a_case(decided), calls={"rationale": (), "policy": ()})
    checked = Checked()
    await check_all(checker(), [case], into=checked)
    assert (checked.first, checked.not_kept, checked.answers, checked.read_again) == (None, 2, 0, 1)
    assert "2 answers could not be replayed" in str(checked)
    assert "the stored reply to 1 of them was read again" in str(checked)
    assert checked.nothing is None
    rules = edited(tmp_path, RULES_FILE, "max_factor_dispersion: 1.5", "max_factor_dispersion: 0")
    assert (await first(case, checker(rules=rules))).where == "policy.rules"


@pytest.mark.parametrize(
    ("path", "value"),
    [("policy.decision.allow", True), ("policy.decision", None), ("policy.status", "invalid"), ("policy.raw", "{}")],
)
async def test_past_the_retention_of_calls_the_stored_reply_still_decides(path: str, value: Any) -> None:
    denied = a_case(lambda case: decided(case) and not case.llm["policy"]["decision"]["allow"])
    case = changed(replace(denied, calls={}), path, value)
    assert (await first(case)).where == {"policy.raw": "policy.status"}.get(path, path)
    checked = Checked()
    await check_all(checker(), [case], into=checked)
    assert (checked.different, checked.read_again) == (1, 1)


async def test_past_the_retention_of_calls_every_golden_record_is_as_stored() -> None:
    checked = Checked()
    await check_all(checker(), [replace(case, calls={}) for case in cases()], into=checked)
    assert checked.first is None, str(checked)
    answers = [case.llm["policy"] for case in cases() if case.llm["policy"]["status"] in {"ok", "invalid"}]
    cut = [one for one in answers if (one["error"] or "").startswith("cut:")]
    assert checked.read_again == len(answers) - len(cut)


async def test_a_stored_reply_is_not_read_by_a_version_that_says_something_else(tmp_path: Path) -> None:
    denied = a_case(lambda case: decided(case) and not case.llm["policy"]["decision"]["allow"])
    case = changed(replace(denied, calls={}), "policy.decision.allow", True)
    prompts = edited(tmp_path, PROMPTS, "COVERAGE: coverage below", "COVERAGE: coverage under")
    checked = Checked()
    await check_all(checker(prompts=prompts), [case], into=checked)
    assert (checked.first, checked.read_again) == (None, 0)
    assert checked.nothing == "no answer was checked: the calls behind all 2 of them are not kept any more"
