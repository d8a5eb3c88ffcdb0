"""Promote, ramp and roll back over HTTP: they do what the command line does, and refuse with its words."""

import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import digest
from tests.conformance.house import ROOT
from tests.fakes.engine import FakeEngine, Reply
from tests.integration.api_app import Stack, running
from tests.integration.prompt_tool import Tool, evaluated, in_services, replayed, rows

Answer = dict[str, Any]


@pytest.fixture
def tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tool:
    """The command line on the very file that the api asks with."""
    for name in ("llm_prompts.yaml", "llm_prompts.lock"):
        shutil.copy(ROOT / "configs" / name, tmp_path / name)
    return Tool(tmp_path / "llm_prompts.yaml", capsys)


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, tool: Tool, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    async with (
        FakeEngine(dialect="vllm", slots=2, reply=Reply("OK")) as fake,
        running(monkeypatch, database_url, fake.base_url, tmp_path / "state", PROMPTS_FILE=str(tool.path)) as made,
    ):
        yield made


async def press(stack: Stack, change: str, *, key: str = "policy", **body: Any) -> httpx.Response:
    return await stack.http.post(f"/llm/admin/prompts/{key}/{change}", json={"operator": "ann", **body})


async def done(stack: Stack, change: str, **body: Any) -> Answer:
    answer = await press(stack, change, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_version_goes_up_and_comes_back(stack: Stack, engine: AsyncEngine, tool: Tool) -> None:
    await replayed(engine, tool, "1.1.0")
    ramped = await done(stack, "ramp", version="1.1.0", percent=10)
    assert (ramped["active"], ramped["arms"], ramped["changed"]) == ("1.0.0", {"1.0.0": 90, "1.1.0": 10}, True)
    assert ramped["phase"] == f"activation-{ramped['activation']['id']}"
    assert "now: policy: 1.0.0 in force, experiment per ticker and day: 1.0.0 90 %, 1.1.0 10 %" in ramped["said"][1]
    again = await done(stack, "ramp", version="1.1.0", percent=10)
    assert (again["changed"], again["said"][0]) == (False, "policy 1.1.0 has 10 % already: nothing to do")

    await evaluated(engine, tool, "1.1.0", name="nightly", thresholds=[{"passed": True, "sentence": "validity is so"}])
    promoted = await done(stack, "promote", version="1.1.0")
    assert (promoted["active"], promoted["arms"], promoted["source"]) == ("1.1.0", {}, "activation")
    assert await in_services(engine, tool.path) == ("activation", "1.1.0", None)
    back = await done(stack, "rollback", reason="it stutters")
    assert (back["active"], back["activation"]["who"]) == ("1.0.0", "ann")
    assert back["activation"]["why"].endswith(": it stutters")
    assert (await done(stack, "rollback"))["changed"] is False

    written = await rows(engine)
    assert [(version, arms) for version, arms, _, _ in written] == [
        ("1.0.0", [["1.0.0", 90], ["1.1.0", 10]]), ("1.1.0", None), ("1.0.0", None),
    ]  # fmt: skip
    assert "evaluation " in written[1][3], "the evidence is on record"


async def test_what_is_refused_says_what_the_command_line_says(stack: Stack, engine: AsyncEngine, tool: Tool) -> None:
    cases: tuple[tuple[str, list[str], Answer], ...] = (
        ("promote", ["promote", "policy", "1.1.0"], {"version": "1.1.0"}),
        ("ramp", ["ramp", "policy", "1.0.0", "5"], {"version": "1.0.0", "percent": 5}),
        ("ramp", ["ramp", "policy", "1.1.0", "5"], {"version": "1.1.0", "percent": 5}),
        ("rollback", ["rollback", "policy"], {}),
    )
    for change, words, body in cases:
        answer = await press(stack, change, **body)
        assert answer.status_code == 409, answer.text
        told = await tool(*words, "--operator", "ann")  # the api logs beside it, so only what it says on stderr counts
        assert (told.code, told.err) == (1, f"{answer.json()['detail']}\n")
    tool.path.write_text(tool.path.read_text().replace("You ", "You there, ", 1), encoding="utf-8")
    edited = await press(stack, "promote", version="1.1.0", reason="urgent")
    assert edited.status_code == 409
    assert "was edited after its release" in edited.json()["detail"]
    assert await rows(engine) == []


async def test_going_back_does_not_depend_on_an_edit(stack: Stack, engine: AsyncEngine, tool: Tool) -> None:
    await done(stack, "promote", version="1.1.0", reason="urgent")
    tool.path.write_text("policy: [", encoding="utf-8")
    assert (await done(stack, "rollback"))["active"] == "1.0.0"


async def test_bad_values_and_keys_without_the_scope_change_nothing(stack: Stack, engine: AsyncEngine) -> None:
    cases: tuple[tuple[str, int, Answer], ...] = (
        ("promote", 422, {}),
        ("promote", 422, {"version": "9.9.9", "reason": "x"}),
        ("promote", 422, {"version": "1.1.0", "reason": "x", "operator": "guardrail"}),
        ("promote", 422, {"version": "1.1.0", "reason": "x", "operator": " "}),
        ("promote", 422, {"version": "1.1.0", "reason": "two\nlines"}),
        ("ramp", 422, {"version": "1.1.0", "percent": 7, "reason": "x"}),
        ("ramp", 422, {"version": "1.1.0", "percent": True, "reason": "x"}),
        ("rollback", 422, {"version": "1.1.0"}),
        ("promote", 404, {"key": "nothing", "version": "1.1.0"}),
    )
    for change, status, body in cases:
        answer = await press(stack, change, **body)
        assert answer.status_code == status, (change, body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    stack.http.headers["Authorization"] = "Bearer lexi_nobody"
    assert (await press(stack, "promote", version="1.1.0", reason="x")).status_code == 401
    assert await rows(engine) == []


async def test_a_reader_may_not(stack: Stack, engine: AsyncEngine, tmp_path: Path) -> None:
    keys = tmp_path / "state" / "keys.json"
    keys.write_text(f'[{{"name": "quant", "sha256": "{digest("lexi_quant")}", "scopes": ["read", "switch"]}}]')
    stack.http.headers["Authorization"] = "Bearer lexi_quant"
    refused = await press(stack, "rollback")
    assert (refused.status_code, refused.json()["detail"]) == (403, "the key quant lacks the scope admin")
    assert await rows(engine) == []
