"""The life of a prompt version by hand, against a real database and a copy of the file."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate, latest
from tests.integration.prompt_tool import DRAFT, PROMPTS, Tool, in_services, make_tool, replayed, rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def tool(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tool:
    return await make_tool(tmp_path, database_url, monkeypatch, capsys)


async def test_the_whole_life_of_a_version(tool: Tool, engine: AsyncEngine) -> None:
    path, locked = tool.path, tool.path.with_suffix(".lock").read_text()
    path.write_text(PROMPTS.replace("limit {{", "limits {{"), encoding="utf-8")
    for command in (["check"], ["release", "policy", "1.0.0"], ["promote", "policy", "1.1.0", "--reason", "x"]):
        told = await tool.refused(*command)
        assert "policy, version 1.0.0: was edited after its release" in told
        assert 'under a new version, such as "1.2.0"' in told
    assert path.with_suffix(".lock").read_text() == locked

    path.write_text(PROMPTS.replace("note:", DRAFT, 1), encoding="utf-8")
    assert "is a draft" in await tool.refused("promote", "policy", "1.2.0", "--reason", "urgent")
    shown = await tool.done("release", "policy", "1.2.0")
    assert "make replay SINCE=… PROMPT=policy VERSION=1.2.0" in shown
    assert 'make eval-llm PROMPT=policy VERSION=1.2.0 FAIL_UNDER="answered=0.9 validity=0.9 flips=0"' in shown
    for command in (["promote", "policy", "1.2.0"], ["ramp", "policy", "1.2.0", "10"]):
        assert "make replay SINCE=… PROMPT=policy VERSION=1.2.0" in await tool.refused(*command)
    await replayed(engine, tool, "1.2.0", total=0)
    await replayed(engine, tool, "1.2.0", state="running")
    assert "has not finished" in await tool.refused("promote", "policy", "1.2.0")
    assert await rows(engine) == []

    await replayed(engine, tool, "1.2.0")
    shown = await tool.done("ramp", "policy", "1.2.0", "10")
    assert "before: policy: 1.0.0 in force\n" in shown
    assert "now: policy: 1.0.0 in force, experiment per ticker and day: 1.0.0 90 %, 1.2.0 10 %" in shown
    assert await in_services(engine, path) == ("activation", "1.0.0", (("1.0.0", 90.0), ("1.2.0", 10.0)))
    assert "1.0.0 90 %, 1.2.0 10 % ended" in await tool.done("rollback", "policy", "--operator", "bob")
    assert await in_services(engine, path) == ("activation", "1.0.0", None)
    assert "went back already, by bob" in await tool.done("rollback", "policy")
    await tool.done("promote", "policy", "1.2.0", "--reason", 'it\'s "fine"')
    assert await in_services(engine, path) == ("activation", "1.2.0", None)
    await tool.done("rollback", "policy")
    assert await in_services(engine, path) == ("activation", "1.0.0", None)

    assert [(version, who) for version, _, who, _ in await rows(engine)] == [
        ("1.0.0", "ann"), ("1.0.0", "bob"), ("1.2.0", "ann"), ("1.0.0", "ann"),
    ]  # fmt: skip
    story = (await tool.done("history", "policy")).splitlines()
    assert [line.split()[0] for line in story[1:]] == ["4", "3", "2", "1"]
    assert 'promoted: it\'s "fine" (replay ' in story[2]
    assert "3 of 120 decisions flip." in story[4]


async def test_who_does_it_is_asked_for(tool: Tool, monkeypatch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    for name in ("", "guardrail"):
        told = await tool.refused("promote", "policy", "1.1.0", "--reason", "x", "--operator", name)
        assert "--operator NAME" in told
    assert await rows(engine) == []


async def test_a_change_in_between_is_not_overwritten(
    tool: Tool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardrail takes the candidate back while somebody raises its share: whoever comes second looks again."""
    await tool.done("ramp", "policy", "1.1.0", "10", "--reason", "x")
    async with engine.begin() as connection:
        [last] = (await latest(connection))["policy"]
        await activate(
            connection, key="policy", version="1.0.0", arms=(), who="guardrail", why="invalid", ground=last.ground
        )
        waiting = asyncio.create_task(tool("ramp", "policy", "1.1.0", "25", "--reason", "y"))
        await wait_for_a_lock(engine)
    told = await waiting
    assert told.code == 1
    assert "somebody changed policy in this very moment" in told.err
    assert [who for _, _, who, _ in await rows(engine)] == ["ann", "guardrail"]


async def wait_for_a_lock(engine: AsyncEngine) -> None:
    waits = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = :name")
    for _ in range(600):
        async with engine.connect() as connection:
            if await connection.scalar(waits, {"name": "lexi-prompts"}):
                return
        await asyncio.sleep(0.05)
    raise AssertionError("nobody waits for the lock")


async def test_going_back_is_possible_in_the_middle_of_an_edit(tool: Tool, engine: AsyncEngine) -> None:
    await tool.done("promote", "policy", "1.1.0", "--reason", "x")
    tool.path.write_text(PROMPTS.replace("limit {{", "limits {{"), encoding="utf-8")
    shown = await tool.done("list")
    assert "was edited after its release" in shown
    assert "policy: 1.1.0 in force" in shown
    shown = await tool.done("rollback", "policy")
    assert "warning: " in shown
    assert "was edited after its release" in shown
    assert "now: policy: 1.0.0 in force" in shown
    tool.path.write_text("policy: [", encoding="utf-8")
    assert "name a copy of theirs in PROMPTS_FILE" in await tool.refused("rollback", "policy")


async def test_the_list_tells_what_rules_and_whom_the_services_ask(
    tool: Tool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    assert "policy: 1.0.0 in force (the file)" in await tool.done("list")
    await tool.done("ramp", "policy", "1.1.0", "25", "--reason", "x")
    shown = await tool.done("list")
    assert "* policy 1.0.0" in shown
    assert ", 75 %" in shown
    assert ", 25 %" in shown
    assert "activation 1 by ann" in shown
    monkeypatch.setenv("LLM_AB_BUCKETS", "policy:1.0.0@80,1.1.0@20")
    shown = await tool.done("list")
    assert "1.0.0 80 %, 1.1.0 20 % (LLM_AB_BUCKETS)" in shown
    assert "warning: the latest activation of policy (1 by ann, " in shown
    assert ": LLM_AB_BUCKETS nothing there, 1.0.0@80,1.1.0@20 here. If the services still run" in shown
    monkeypatch.delenv("LLM_AB_BUCKETS")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/away")
    shown = await tool.done("list")
    assert "policy: 1.0.0 in force (the file)" in shown
    assert "warning: activations are not shown: cannot use the database at 127.0.0.1:1" in shown
    assert "secret" not in shown
    monkeypatch.delenv("DATABASE_URL")
    assert "DATABASE_URL names no database" in await tool.done("list")
    assert "DATABASE_URL" in await tool.refused("rollback", "policy")


async def test_the_command_line_as_it_is_called(tool: Tool, database_url: str, tmp_path: Path) -> None:
    known = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "PROMPTS_FILE": str(tool.path), "USER": "eve"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "libs.llm.registry", *words]
        return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True)

    done = await asyncio.to_thread(call, "ramp", "policy", "1.1.0", "5", "--reason", "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert "activation 1 by eve" in done.stdout
    refused = await asyncio.to_thread(call, "ramp", "policy", "1.1.0", "7", "--reason", "x")
    assert refused.returncode == 2
    assert "choose from 1, 5, 10, 25, 50" in refused.stderr
    unknown = await asyncio.to_thread(call, "promote", "nothing", "1.1.0")
    assert (unknown.returncode, unknown.stderr) == (1, "there is no prompt 'nothing'\n")
