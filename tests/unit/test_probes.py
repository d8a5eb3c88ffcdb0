"""Health, readiness with its three colours, metrics."""

import asyncio
from pathlib import Path
from typing import cast

import httpx
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from libs import probes
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.prompts import LivePrompts
from libs.model_client import Model
from libs.probes import Check, Degraded, probe_app
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.pool import Upstreams
from tests.unit.llm_cases import write_prompts


def says(reason: str | None) -> Check:
    async def check() -> str | None:
        return reason

    return check


async def get(path: str, checks: dict[str, Check]) -> httpx.Response:
    transport = httpx.ASGITransport(probe_app(checks))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path)


async def test_ready_has_a_line_per_dependency_with_its_reason() -> None:
    checks = {"database": says(None), "lexi": says(Degraded("down: refused"))}
    answer = await get("/ready", checks)
    assert answer.status_code == 200
    assert answer.text.splitlines() == ["green  database", "yellow lexi: down: refused"]


async def test_one_red_dependency_makes_it_503() -> None:
    answer = await get("/ready", {"database": says("gone"), "lexi": says(None)})
    assert answer.status_code == 503
    assert answer.text.splitlines() == ["red    database: gone", "green  lexi"]


async def test_a_check_that_fails_or_hangs_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CHECK_TIMEOUT_S", 0.05)

    async def fails() -> str | None:
        raise ConnectionRefusedError("no\nsecond line")

    async def hangs() -> str | None:
        await asyncio.Event().wait()
        return None

    answer = await get("/ready", {"a": fails, "b": hangs})
    assert answer.status_code == 503
    assert answer.text.splitlines() == ["red    a: ConnectionRefusedError: no", "red    b: no answer within 0.05 s"]


async def test_dependencies_that_come_and_go_are_asked_for_each_time() -> None:
    checks: dict[str, Check] = {"lexi": says(None)}
    app = probe_app(lambda: dict(checks))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get("/ready")).text.splitlines() == ["green  lexi"]
        checks["new"] = says(Degraded("down"))
        assert (await http.get("/ready")).text.splitlines() == ["green  lexi", "yellow new: down"]
        checks.clear()
        assert (await http.get("/ready")).text == ""


async def test_health_does_not_ask_the_dependencies() -> None:
    answer = await get("/health", {"database": says("gone")})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_metrics_speak_prometheus() -> None:
    answer = await get("/metrics", {})
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# HELP" in answer.text


async def test_an_upstream_with_the_name_of_another_line_hides_nothing(tmp_path: Path) -> None:
    names = ("lexi", "database", "prompts")
    entries = {name: UpstreamEntry(name, "m", "http://127.0.0.1:9/v1", "vllm", 1, {"api": 1}) for name in names}
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:9/none")
    model = Model(
        client=cast("Client", None),
        prompts=LivePrompts(engine, path=write_prompts(tmp_path)),
        upstreams=Upstreams(entries, role="api"),
        recorder=Recorder(engine, service="api", state_dir=tmp_path),
        cache=None,
    )
    answer = await get("/ready", model.checks({"database": says("gone"), "keys": says(None)}))
    assert answer.status_code == 503
    assert [line.split(":")[0].split(maxsplit=1) for line in answer.text.splitlines()] == [
        ["red", "database"],
        ["green", "keys"],
        ["yellow", "prompts"],
        ["green", "upstreams_file"],
        ["yellow", "lexi"],
        ["yellow", "upstream database"],
        ["yellow", "upstream prompts"],
    ]
