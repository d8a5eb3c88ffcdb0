"""Prompts turned with another file or another environment than the services have, and by hand in the table."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.activation_cases import write_by_hand
from tests.integration.prompt_tool import PROMPTS, Tool, asked, evaluated, in_services, make_tool, replayed, rows

BEHIND = PROMPTS
DEPLOYED = PROMPTS.replace('version: "1.0.0"   # since', 'version: "1.1.0"   # since')


@pytest.fixture
async def tool(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tool:
    return await make_tool(tmp_path, database_url, monkeypatch, capsys)


async def test_services_that_ask_what_nobody_is_given_are_told_of(tool: Tool, engine: AsyncEngine) -> None:
    await asked(engine, number=1, version="1.0.0", inputs=None)
    shown = await tool.done("list")
    assert "1 calls in 10 min" in shown
    assert "warning" not in shown
    await asked(engine, number=2, version="1.1.0", inputs=None)
    assert "warning: services asked policy 1.1.0 1 times lately" in await tool.done("list")
    told = await tool.refused("rollback", "policy")
    assert "another LLM_AB_BUCKETS" in told
    assert "nothing to roll back" in told
    await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    assert "warning" not in await tool.done("list"), "calls from before a change say nothing against it"


async def test_a_checkout_that_lags_behind_ends_no_rollback(tool: Tool, engine: AsyncEngine, tmp_path: Path) -> None:
    services = tmp_path / "services" / "prompts.yaml"
    services.parent.mkdir()
    services.write_text(DEPLOYED)
    services.with_suffix(".lock").write_text(tool.path.with_suffix(".lock").read_text())
    tool.path.write_text(DEPLOYED)
    await tool.done("promote", "policy", "1.0.0", "--reason", "1.1.0 is bad")
    assert await in_services(engine, services) == ("activation", "1.0.0", None)

    tool.path.write_text(BEHIND)
    told = "the latest activation of policy (1 by ann, "
    assert f"note: {told}" in await tool.done("list")
    await replayed(engine, tool, "1.1.0")
    await evaluated(engine, tool, "1.1.0", name="nightly")
    for command in (["ramp", "policy", "1.1.0", "1"], ["promote", "policy", "1.1.0"]):
        refused = await tool.refused(*command, "--operator", "bob")
        assert told in refused
        assert "file version 1.1.0 there, 1.0.0 here" in refused
        assert '--reason "…"' in refused
    assert len(await rows(engine)) == 1
    shown = await tool.done("ramp", "policy", "1.1.0", "1", "--operator", "bob", "--reason", "try")
    assert told in shown
    assert await in_services(engine, services) == ("activation", "1.0.0", None), "not touched by it"

    tool.path.write_text(DEPLOYED)
    shown = await tool.done("list")
    assert "policy: 1.0.0 in force (activation 1 by ann" in shown
    assert "warning: the latest activation of policy (2 by bob, " in shown
    assert "went back already" not in await tool.refused("rollback", "policy")
    await tool.done("rollback", "policy", "--reason", "1.0.0 is worse")
    assert await in_services(engine, services) == ("activation", "1.1.0", None)


async def test_a_shell_without_the_environment_of_the_services_ends_no_rollback(
    tool: Tool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = "policy:1.0.0@50,1.1.0@50"
    monkeypatch.setenv("LLM_AB_BUCKETS", buckets)
    await tool.done("rollback", "policy")
    assert await in_services(engine, tool.path, buckets=buckets) == ("activation", "1.0.0", None)
    monkeypatch.delenv("LLM_AB_BUCKETS")
    await tool.done("ramp", "policy", "1.1.0", "1", "--reason", "again")
    assert await in_services(engine, tool.path, buckets=buckets) == ("activation", "1.0.0", None)


async def test_a_row_written_by_hand_stops_nobody(tool: Tool, engine: AsyncEngine) -> None:
    await write_by_hand(engine, "policy")
    problem = "activation 1 of policy is not followed: its arms are not pairs of version and weight"
    assert f"warning: {problem}" in await tool.done("list")
    assert "not followed, its arms are not pairs" in await tool.done("history", "policy")
    assert "nothing to roll back" in await tool.refused("rollback", "note")
    assert problem in await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    assert "warning" not in await tool.done("list")
    assert "now: policy: 1.0.0 in force" in await tool.done("rollback", "policy")
    await write_by_hand(engine, "policy", experiment='"none"')
    assert "warning: the latest activation of policy (4 by bob)" in await tool.done("list")
    assert "1.1.0 in force" in await tool.done("promote", "policy", "1.1.0", "--reason", "x")
