"""What is in force written back into a copy of the file, and what two versions differ in."""

import json
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.prompt_tool import PROMPTS, Tool, asked, in_services, make_tool, rows
from tests.unit.llm_cases import VERDICT_INPUTS


@pytest.fixture
async def tool(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tool:
    return await make_tool(tmp_path, database_url, monkeypatch, capsys)


async def test_a_diff_shows_what_the_model_is_sent(tool: Tool, engine: AsyncEngine, tmp_path: Path) -> None:
    command = ["diff", "policy", "1.0.0", "1.1.0"]
    assert "no inputs of policy are stored" in await tool.done(*command)
    assert "no inputs of policy are stored" in await tool.refused(*command, "--stored", "2")
    for number, ticker in enumerate(("AAPL", "MSFT"), start=1):
        inputs = json.dumps({**VERDICT_INPUTS, "ticker": ticker})
        await asked(engine, number=number, version="1.0.0", inputs=inputs)
    shown = await tool.done(*command)
    assert "-MSFT at 101.5, limit 99\n+MSFT costs 101.5, limit 99" in shown
    assert "AAPL" not in shown
    assert "-{{ ticker }} at {{ price }}" in shown
    assert "-AAPL at 101.5, limit 99" in await tool.done(*command, "--stored", "2")
    assert "rendered" not in await tool.done(*command, "--stored", "0")
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({**VERDICT_INPUTS, "ticker": "IBM"}), encoding="utf-8")
    assert "+IBM costs 101.5" in await tool.done(*command, "--inputs", str(inputs))
    inputs.write_text(json.dumps({"ticker": "IBM"}), encoding="utf-8")
    shown = await tool.done(*command, "--inputs", str(inputs))
    assert "cannot be rendered: prompt policy 1.0.0" in shown
    inputs.write_text("{", encoding="utf-8")
    assert "is not JSON" in await tool.refused(*command, "--inputs", str(inputs))


def differences(before: str, after: str) -> list[str]:
    old, new = before.splitlines(), after.splitlines()
    return [f"-{line}" for line in old if line not in new] + [f"+{line}" for line in new if line not in old]


async def test_adopting_writes_the_lines_that_are_meant_and_no_other(tool: Tool, engine: AsyncEngine) -> None:
    path = tool.path
    path.chmod(0o640)
    assert "nothing to write" in await tool.done("adopt")
    await tool.done("ramp", "policy", "1.1.0", "10", "--reason", "x")
    assert "counts as a new phase" in await tool.done("adopt", "policy")
    first = path.read_text()
    assert differences(PROMPTS, first) == ['+  experiment: {arms: {"1.0.0": 90, "1.1.0": 10}}']
    assert await in_services(engine, path) == ("file", "1.0.0", (("1.0.0", 90.0), ("1.1.0", 10.0)))
    assert "warning" not in await tool.done("list"), "what was adopted is not left behind"

    await tool.done("ramp", "policy", "1.1.0", "25", "--reason", "x")
    await tool.done("adopt")
    assert differences(first, path.read_text()) == [
        '-  experiment: {arms: {"1.0.0": 90, "1.1.0": 10}}',
        '+  experiment: {arms: {"1.0.0": 75, "1.1.0": 25}}',
    ]
    await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    assert "is taken out" in await tool.done("adopt")
    assert differences(PROMPTS, path.read_text()) == [
        '-  version: "1.0.0"   # since Monday',
        '+  version: "1.1.0"   # since Monday',
    ]
    assert "say why it is meant" in await tool.refused("rollback", "policy")
    await tool.done("rollback", "policy", "--reason", "worse")
    assert [version for version, *_ in await rows(engine)] == ["1.0.0", "1.0.0", "1.1.0", "1.0.0"]
    shown = await tool.done("adopt", "--operator", "bob")
    assert "a revert of this change brings activation 4 back; to go back, use rollback" in shown
    assert "says again what it said at activation 1, which would rule again" in shown
    assert path.read_text() == PROMPTS
    assert (await rows(engine))[4:] == [("1.0.0", None, "bob", "adopted, instead of activation 1")]
    assert await in_services(engine, path) == ("activation", "1.0.0", None)
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in path.parent.iterdir()) == ["prompts.lock", "prompts.yaml"]


async def test_adopting_refuses_what_would_not_hold_afterwards(
    tool: Tool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_AB_BUCKETS", "policy:1.0.0@80,1.1.0@20")
    await tool.done("ramp", "policy", "1.1.0", "50", "--reason", "x")
    told = await tool.refused("adopt")
    assert "LLM_AB_BUCKETS has an entry for policy" in told
    assert 'experiment: {arms: {"1.0.0": 50, "1.1.0": 50}}' in told
    assert tool.path.read_text() == PROMPTS
    monkeypatch.delenv("LLM_AB_BUCKETS")

    shared = PROMPTS.replace('version: "1.0.0"   #', 'version: &v "1.0.0"   #').replace(
        'note:   # of the desk\n  version: "1.0.0"', "note:   # of the desk\n  version: *v"
    )
    tool.path.write_text(shared, encoding="utf-8")
    await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    assert "could not be read afterwards" in await tool.refused("adopt")
    assert tool.path.read_text() == shared
    assert sorted(one.name for one in tool.path.parent.iterdir()) == ["prompts.lock", "prompts.yaml"]


async def test_what_adopt_would_wake_is_kept_asleep_only_by_somebody_with_a_name(
    tool: Tool, engine: AsyncEngine
) -> None:
    await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    await tool.done("adopt", "--operator", "")
    await tool.done("rollback", "policy", "--reason", "worse")
    before = tool.path.read_text()
    assert "--operator NAME" in await tool.refused("adopt", "--operator", "")
    assert (tool.path.read_text(), len(await rows(engine))) == (before, 2)
