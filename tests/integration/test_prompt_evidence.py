"""What a promotion asks the tables of evaluations for, and what of an evaluation is no evidence of live work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Pinned
from libs.evaluation.sharing.register import register
from libs.judgement import rules as rules_module
from libs.llm.commands import turning
from tests.integration.evaluation_sharing_cases import RULES_SHA256
from tests.integration.prompt_tool import MODEL, Tool, asked, evaluated, hash_of, make_tool, replayed, rows
from tests.unit.evaluation_running_cases import plan_of

MET = {"name": "validity", "passed": True, "sentence": "validity of policy 1.1.0 is 0.998, asked for at least 0.95"}
MISSED = {"name": "flips", "passed": False, "sentence": "2 hostile twins flip to allow, asked for at most 0"}
COMMAND = 'make eval-llm PROMPT=policy VERSION=1.1.0 FAIL_UNDER="answered=0.9 validity=0.9 flips=0"'


@pytest.fixture
async def tool(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tool:
    return await make_tool(tmp_path, database_url, monkeypatch, capsys)


async def test_a_promotion_asks_for_an_evaluation_that_passed(tool: Tool, engine: AsyncEngine) -> None:
    promote = ("promote", "policy", "1.1.0")
    told = await tool.refused(*promote)
    assert "no finished replay of policy 1.1.0" in told
    assert f"no finished evaluation of policy 1.1.0 ({hash_of(tool, '1.1.0')[:12]}) is on record" in told
    await replayed(engine, tool, "1.1.0")
    told = await tool.refused(*promote)
    assert "replay" not in told
    assert COMMAND in told
    await evaluated(engine, tool, "1.1.0", name="nightly", thresholds=[MET, MISSED], passed=False)
    told = await tool.refused(*promote)
    assert f"missed a threshold: {MISSED['sentence']}: mend it" in told
    assert "validity" not in told.replace(COMMAND, ""), "what was met is no reason"
    number = await evaluated(engine, tool, "1.1.0", name="mended", thresholds=[MET])
    assert "now: policy: 1.1.0 in force" in await tool.done(*promote)
    [(version, _, who, why)] = await rows(engine)
    assert (version, who) == ("1.1.0", "ann")
    assert why.startswith("promoted: replay ")
    assert f"3 of 120 decisions flip.; evaluation {number} (mended, 1000 items asked of Lexi vllm 0.19.0, " in why
    assert why.endswith(f" UTC) passed: {MET['sentence']}")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"state": "running", "passed": None}, "has not finished: wait for it, resume it, or run another"),
        ({"state": "failed", "passed": None}, "no finished evaluation of policy 1.1.0"),
        ({"state": "cancelled", "passed": None}, "no finished evaluation of policy 1.1.0"),
        ({"total": 0}, "no finished evaluation of policy 1.1.0"),
        ({"passed": None}, "asked for no threshold: run one that does"),
        ({"content": "0" * 64}, "no finished evaluation of policy 1.1.0"),
    ],
)
async def test_what_is_no_evidence_says_the_way_out(
    tool: Tool, engine: AsyncEngine, more: Mapping[str, Any], says: str
) -> None:
    await replayed(engine, tool, "1.1.0")
    await evaluated(engine, tool, "1.1.0", name="nightly", **more)
    told = await tool.refused("promote", "policy", "1.1.0")
    assert says in told
    assert COMMAND in told
    assert await rows(engine) == []


async def test_the_latest_evaluation_with_a_threshold_counts(tool: Tool, engine: AsyncEngine) -> None:
    await replayed(engine, tool, "1.1.0")
    await evaluated(engine, tool, "1.1.0", name="good", thresholds=[MET])
    await evaluated(engine, tool, "1.1.0", name="bad", thresholds=[MET, MISSED], passed=False)
    await evaluated(engine, tool, "1.1.0", name="a look", passed=None)
    told = await tool.refused("promote", "policy", "1.1.0")
    assert "(bad, 1000 items asked of " in told
    await tool.done("promote", "policy", "1.1.0", "--reason", "urgent")
    [(_, _, _, why)] = await rows(engine)
    assert why.startswith("promoted: urgent (replay ")
    assert f"missed a threshold: {MISSED['sentence']})" in why, "a reason does not hide what was found"


async def test_a_ramp_asks_for_a_replay_alone(tool: Tool, engine: AsyncEngine) -> None:
    await replayed(engine, tool, "1.1.0")
    await tool.done("ramp", "policy", "1.1.0", "5")
    [(_, _, _, why)] = await rows(engine)
    assert "evaluation" not in why


async def test_thresholds_that_say_nothing_leave_the_record_short(tool: Tool, engine: AsyncEngine) -> None:
    await replayed(engine, tool, "1.1.0")
    await evaluated(engine, tool, "1.1.0", name="nightly", thresholds=[{"name": "validity", "passed": True}], model={})
    await tool.done("promote", "policy", "1.1.0")
    [(_, _, _, why)] = await rows(engine)
    assert "items asked of an unknown model, " in why
    assert why.endswith(" UTC) passed")


@pytest.mark.parametrize(("missing", "met", "says"), [(0, True, None), (0, False, "missed"), (3, True, "no finished")])
async def test_what_an_evaluation_registers_is_what_a_promotion_finds(
    tool: Tool, engine: AsyncEngine, *, missing: int, met: bool, says: str | None
) -> None:
    await replayed(engine, tool, "1.1.0")
    versions = (Pinned("policy", "1.0.0", "0" * 64), Pinned("policy", "1.1.0", hash_of(tool, "1.1.0")))
    plan = plan_of(500, versions=versions, stamp={"model": dict(MODEL)}, rules_sha256=RULES_SHA256)
    spoken = {"prompt": "policy", "version": "1.1.0", "name": "validity", "asked": 0.95, "sentence": "validity is so"}
    summary: dict[str, Any] = {
        "run": {"complete": not missing, "missing": missing},
        "passed": met,
        "thresholds": [spoken | {"passed": met}, spoken | {"version": "1.0.0", "passed": False, "sentence": "worse"}],
    }
    async with engine.begin() as connection:
        await register(connection, plan=plan, summary=summary, report_html="<p>", asked_by="ann")
    if says is None:
        await tool.done("promote", "policy", "1.1.0")
        [(_, _, _, why)] = await rows(engine)
        assert f"; evaluation {plan.evaluation_id} (test, 1000 items asked of Lexi vllm 0.19.0, " in why
        assert why.endswith(" UTC) passed: validity is so"), "what another version missed is not held against it"
    else:
        assert says in await tool.refused("promote", "policy", "1.1.0")


async def test_an_evaluation_by_other_rules_says_so_to_whoever_promotes_and_on_record(
    tool: Tool, engine: AsyncEngine
) -> None:
    await replayed(engine, tool, "1.1.0")
    await evaluated(engine, tool, "1.1.0", name="nightly", thresholds=[MET], rules_sha256="e" * 64)
    shown = await tool.done("promote", "policy", "1.1.0")
    [(_, _, _, why)] = await rows(engine)
    says = f"by other rules than today's (eeeeeeeeeeee then, {RULES_SHA256[:12]} now)"
    assert why.endswith(f"{MET['sentence']}; {says}")
    assert says in shown
    assert turning.RULES_FILE == rules_module.RULES_FILE


async def test_calls_of_evaluations_are_nobody_s_traffic(tool: Tool, engine: AsyncEngine) -> None:
    await asked(engine, number=1, version="1.0.0", inputs=None)
    for number, service in enumerate(("eval", "jobs"), start=2):
        await asked(engine, number=number, version="1.1.0", inputs="{}", service=service)
    shown = await tool.done("list")
    assert "1 calls in 10 min" in shown
    assert "warning" not in shown
    assert "no inputs of policy are stored" in await tool.done("diff", "policy", "1.0.0", "1.1.0")
    await asked(engine, number=4, version="1.1.0", inputs=None, service="api")
    assert "services asked policy 1.1.0 1 times lately" in await tool.done("list")
