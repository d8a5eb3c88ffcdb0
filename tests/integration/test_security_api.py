"""The gateway as its process opens it: what asks for no key, and what no body or path gets past."""

import ast
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from libs.http_door import Door
from libs.json_depth import MOST
from libs.keys import create_key, parse_scopes
from libs.probes import PATHS
from tests.fakes.engine import FakeEngine, Reply
from tests.integration.api_app import Stack, running

ROOT = Path(__file__).parents[2]
OPEN = {"GET /llm/health", *(f"GET {path}" for path in PATHS)}


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=Reply("Fine.", tokens_in=11, tokens_out=3)) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    async with running(monkeypatch, database_url, fake.base_url, tmp_path) as made:
        yield made


@pytest.fixture
async def client(stack: Stack) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of the app behind its door, without a key."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Door(stack.front)), base_url="http://localhost") as made:
        yield made


async def test_nothing_but_health_readiness_and_metrics_is_open(stack: Stack, client: httpx.AsyncClient) -> None:
    found = known_routes(stack.app)
    assert len(found) > 30
    assert found >= OPEN
    for route in sorted(found - OPEN):
        method, path = route.split(" ")
        address = re.sub(r"\{[^}]+\}", "x", path)
        for headers in ({}, {"Authorization": "Bearer lexi_wrong"}, {"Authorization": "Basic x"}, {"Cookie": "key=x"}):
            answer = await client.request(method, address, headers=headers, content=b"not even JSON")
            assert answer.status_code == 401, f"{route} answers {answer.status_code} to nobody"


def known_routes(app: FastAPI) -> set[str]:
    """Every method and path, as the framework describes them."""
    paths = get_openapi(title="t", version="1", routes=app.routes)["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    return described | {f"GET {path}" for path in PATHS}


async def test_each_scope_opens_its_own_routes_and_no_other(
    stack: Stack, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    wanted = {
        "GET /signals/latest": "read",
        "GET /strategist/halt": "read",
        "GET /llm/admin/stats": "admin",
        "POST /llm/chat": "infer",
        "POST /strategist/gate": "trade",
        "POST /strategist/switches": "switch",
        "POST /strategist/panic-exit": "panic",
        "POST /strategist/rearm": "rearm",
        "POST /ingest/social": "ingest",
        "GET /v1/models": "infer",
    }
    for scope in sorted(set(wanted.values())):
        token = create_key(tmp_path / "keys.json", f"only-{scope}", parse_scopes(scope))
        for route, needed in wanted.items():
            method, path = route.split(" ")
            headers = {"Authorization": f"Bearer {token}"}
            answer = await client.request(method, path, headers=headers, content=b"no JSON")
            refused = answer.status_code == 403 and "lacks the scope" in answer.text
            assert refused == (needed != scope), f"{route} with {scope}: {answer.status_code} {answer.text}"


async def test_a_body_nested_too_deeply_is_refused_on_both_planes(stack: Stack, client: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json"}
    facts = '{"facts": [{"ticker": "A", "name": "n", "source": "s", "as_of": "2026-01-01T00:00:00Z", "value": %s}]}'
    for levels in (MOST + 1, 5000, 100_000):
        answer = await client.post("/ingest/facts", headers=headers, content=facts % ("[" * levels + "]" * levels))
        assert answer.status_code == 400
        assert "levels" in answer.text
    for levels in (241, 5000, 100_000):
        message = '{"model": "Lexi", "messages": [{"role": "user", "content": "x"}], "x": %s}'
        answer = await client.post(
            "/v1/chat/completions", headers=headers, content=message % ("[" * levels + "]" * levels)
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in {"invalid_json", "invalid_body"}


async def test_the_name_of_a_model_is_decoded_once(stack: Stack, client: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {stack.token}"}
    assert (await client.get("/v1/models/Lexi", headers=headers)).status_code == 200
    again = await client.get("/v1/models/%254Cexi", headers=headers)
    assert (again.status_code, "%4Cexi" in again.text) == (404, True)
    assert (await client.get("/v1/models/%4Cexi", headers=headers)).status_code == 400


@pytest.mark.parametrize("path", ["//llm/admin/calls", "/llm%2fadmin/calls", "/llm%5cadmin"])
async def test_no_path_leads_to_a_route_by_another_name(client: httpx.AsyncClient, path: str) -> None:
    request = client.build_request("GET", "http://localhost/x")
    request.url = request.url.copy_with(raw_path=path.encode())
    assert (await client.send(request)).status_code == 400


def test_every_server_of_ours_stands_behind_the_door() -> None:
    """One function serves; the watchdog's page of health and metrics, which reads no more than a path, is its own."""
    listening = {
        str(path.relative_to(ROOT))
        for folder in ("libs", "services")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in {"Server", "start_server", "run_app", "create_server"}
        and ast.unparse(node).split(".")[0] in {"uvicorn", "asyncio", "loop", "web"}
        and "AbstractServer" not in ast.unparse(node)
    }
    assert listening <= {"libs/process.py", "services/watchdog/page.py"}
    assert "Door(" in (ROOT / "libs" / "process.py").read_text(encoding="utf-8")
