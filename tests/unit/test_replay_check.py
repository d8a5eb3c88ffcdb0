"""Exact replay over the golden sets: everything comes out as stored, and whatever is changed is named first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.llm.structured import Output, Parsed, Rejected
from libs.replay.cases import case_from, read_cases
from libs.replay.check import Checked, check_all
from tests.unit.replay_check_cases import (
    FORECASTS,
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


@pytest.mark.parametrize("path", FORECASTS, ids=lambda path: path.stem)
async def test_every_recorded_answer_leads_to_what_is_stored(path: Path) -> None:
    checked = Checked()
    await check_all(checker(), read_cases(path), into=checked)
    assert checked.first is None, str(checked)
    assert checked.cases >= 10
    assert checked.not_kept == 0


def test_the_golden_set_holds_every_kind_of_answer() -> None:
    policies = [case.llm["policy"] for case in cases()]
    calls = [case.calls["policy"] for case in cases()]
    assert {policy["status"] for policy in policies} == {"ok", "invalid", "unavailable"}
    assert {policy["decision"]["allow"] for policy in policies if policy["decision"]} == {True, False}
    assert {policy["rules"]["allow"] for policy in policies} == {True, False}
    assert {policy["cached"] for policy in policies} == {True, False}
    assert any(len(chain) == 2 and policy["status"] == "ok" for chain, policy in zip(calls, policies, strict=True))
    assert any(call.finish_reason == "length" for chain in calls for call in chain)
    assert all(case.llm["inputs"]["headlines"] for case in cases())
    assert any(case.llm["inputs"]["facts"] for case in cases())
    assert any(case.llm["rationale"]["ungrounded_numbers"] for case in cases())


async def test_an_edited_template_is_named_with_the_line(tmp_path: Path) -> None:
    prompts = edited(tmp_path, PROMPTS, "COVERAGE: coverage below", "COVERAGE: coverage under")
    found = await first(a_case(decided), checker(prompts=prompts))
    assert found.where == "policy.messages[0]"
    assert "coverage below 85%" in found.stored
    assert "coverage under 85%" in found.now


async def test_an_edited_user_template_is_named(tmp_path: Path) -> None:
    prompts = edited(
        tmp_path, PROMPTS, "{{ ticker }} forecast for {{ horizon }}: {{ last_price }}", "{{ ticker }}: {{ last_price }}"
    )
    found = await first(a_case(decided), checker(prompts=prompts))
    assert found.where == "rationale.messages[2]"


async def test_an_edited_schema_is_named_though_the_messages_are_the_same(tmp_path: Path) -> None:
    prompts = edited(
        tmp_path, PROMPTS, "items: {enum: [INSTRUCTIONS, LOOK_ALIKE,", "items: {enum: [INSTRUCTIONS, OTHER, LOOK_ALIKE,"
    )
    found = await first(a_case(decided), checker(prompts=prompts))
    assert (found.where, len(found.stored), found.stored != found.now) == ("policy.prompt_hash", 64, True)


async def test_an_edited_input_cap_changes_what_is_sent(tmp_path: Path) -> None:
    prompts = edited(tmp_path, PROMPTS, "items: {type: string, maxLength: 160}", "items: {type: string, maxLength: 20}")
    found = await first(a_case(decided), checker(prompts=prompts))
    assert found.where == "rationale.messages[1]"


async def test_a_version_that_is_gone_is_named(tmp_path: Path) -> None:
    content = PROMPTS.read_text(encoding="utf-8").replace('"1.0.0"', '"2.0.0"')
    path = tmp_path / "prompts.yaml"
    path.write_text(content, encoding="utf-8")
    found = await first(a_case(decided), checker(prompts=path))
    assert found.where == "rationale.messages"
    assert "no version '1.0.0'" in found.now


async def test_a_changed_rule_is_named(tmp_path: Path) -> None:
    rules = edited(tmp_path, RULES_FILE, "max_factor_dispersion: 1.5", "max_factor_dispersion: 0.01")
    allowed = a_case(lambda case: case.llm["policy"]["rules"]["allow"])
    found = await first(allowed, checker(rules=rules))
    assert (found.where, found.stored) == ("policy.rules", {"allow": True, "reasons": []})
    assert found.now == {"allow": False, "reasons": ["DISPERSION"]}


async def test_a_changed_threshold_that_turns_no_rule_is_found_in_what_is_asked(tmp_path: Path) -> None:
    rules = edited(tmp_path, RULES_FILE, "min_liquidity_usd: 5000000", "min_liquidity_usd: 6000000")
    found = await first(a_case(decided), checker(rules=rules))
    assert found.where == "policy.messages[0]"
    assert "5.0m USD" in found.stored
    assert "6.0m USD" in found.now


async def test_a_parser_that_takes_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Output.parse

    def lenient(self: Output, text: str, *, finish_reason: str = "stop") -> Parsed | Rejected:
        return strict(self, text.replace('"true"', "true"), finish_reason=finish_reason)

    monkeypatch.setattr(Output, "parse", lenient)
    repaired = a_case(lambda case: '"true"' in "".join(call.reply for call in case.calls["policy"]))
    found = await first(repaired)
    assert found.where == "policy.raw"
    assert '"true"' in found.now


async def test_a_parser_that_takes_less_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Output.parse

    def stricter(self: Output, text: str, *, finish_reason: str = "stop") -> Parsed | Rejected:
        found = strict(self, text, finish_reason=finish_reason)
        value: Any = found.value if isinstance(found, Parsed) else None
        return Rejected("schema", "no flags, please") if isinstance(value, dict) and value["flags"] else found

    monkeypatch.setattr(Output, "parse", stricter)
    flagged = a_case(lambda case: decided(case) and bool(case.llm["policy"]["decision"]["flags"]))
    found = await first(flagged)
    assert found.where == "policy.decision"
    assert (found.stored["flags"] != [], found.now) == (True, None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("policy.decision.reasons", ["LIQUIDITY"]),
        ("policy.decision.flags", ["ADVERSE_NEWS"]),
        ("policy.raw", "{}"),
        ("policy.model", "Other"),
        ("policy.status", "invalid"),
        ("policy.error", "schema: x"),
        ("policy.prompt_hash", "0" * 64),
        ("policy.prompt_version", "1.1.0"),
        ("policy.rules.reasons", ["MACRO"]),
        ("rationale.text", "Something else."),
        ("rationale.ungrounded_numbers", ["1"]),
        ("inputs.horizon", "2d"),
    ],
)
async def test_whatever_is_changed_in_a_record_is_named(path: str, value: Any) -> None:
    case = a_case(lambda case: decided(case) and case.llm["rationale"]["status"] == "ok")
    found = await first(changed(case, path, value))
    named = {"policy.rules.reasons": "policy.rules", "inputs.horizon": "rationale.messages[2]"}
    assert found.where == named.get(path, path)
    assert str(case.forecast_id) in str(found)


@pytest.mark.parametrize("path", ["policy.decision.allow", "policy.shadow_allow", "policy.rules.allow"])
async def test_a_stored_word_that_was_turned_is_named(path: str) -> None:
    case = a_case(decided)
    part, *way = path.split(".")
    value: Any = case.llm[part]
    for step in way:
        value = value[step]
    found = await first(changed(case, path, not value))
    assert found.where == ("policy.rules" if "rules" in path else path)


async def test_an_unreadable_record_is_a_difference() -> None:
    case = a_case(decided)
    assert (await first(replace(case, llm={**case.llm, "v": 2}))).where == "inputs"
    broken = {**case.llm, "policy": {name: case.llm["policy"][name] for name in ("rules", "prompt_hash", "status")}}
    assert (await first(replace(case, llm=broken))).where.startswith(("record", "policy"))
    checked = Checked()
    await check_all(checker(), [replace(case, llm={**broken, "rationale": {}}, calls={})], into=checked)
    assert checked.different == 1


def test_a_case_survives_its_line() -> None:
    for case in cases():
        assert case_from(json.loads(case.line())) == case
