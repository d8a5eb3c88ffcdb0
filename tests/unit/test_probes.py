"""Health, readiness with its three colours, metrics."""

import asyncio

import httpx
import pytest

from libs import probes
from libs.probes import Check, Degraded, probe_app


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
