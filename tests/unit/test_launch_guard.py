"""The middleware that closes what vLLM's key leaves open."""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest

from tests.unit.launch_cases import SCRIPTS

Guard = Callable[..., Any]


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """The class, loaded as vLLM does: by its module's name from a folder on the path."""
    spec = spec_from_file_location("lexi_guard", SCRIPTS / "lib/lexi_guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lexi_guard", module)
    spec.loader.exec_module(module)
    return module.Guard


async def passed(guard: Guard, scope: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the server behind saw the request, and what was sent to the caller."""
    seen: list[object] = []
    sent: list[dict[str, Any]] = []

    async def server(scope: dict[str, Any], receive: object, send: object) -> None:
        seen.append(scope)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await guard(server)(scope, None, send)
    return bool(seen), sent


@pytest.mark.parametrize(
    "path",
    ["/health", "/metrics", "/version", "/v1/models", "/v1/models/Lexi", "/v1/chat/completions", "/v1/completions"],
)
async def test_what_a_gateway_uses_passes(guard: Guard, path: str) -> None:
    assert await passed(guard, {"type": "http", "path": path}) == (True, [])


@pytest.mark.parametrize(
    "path",
    [
        "/invocations",
        "/tokenize",
        "/detokenize",
        "/load",
        "/docs",
        "/openapi.json",
        "/inference/v1/generate",
        "/scale_elastic_ep",
        "/v1/chat/completions/render",
        "/v1/load_lora_adapter",
        "//v1/chat/completions",
        "/health/",
        "",
    ],
)
async def test_anything_else_is_not_found(guard: Guard, path: str) -> None:
    through, sent = await passed(guard, {"type": "http", "path": path})
    assert not through
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 404
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()


async def test_websockets_are_closed(guard: Guard) -> None:
    scope = {"type": "websocket", "path": "/v1/chat/completions"}
    assert await passed(guard, scope) == (False, [{"type": "websocket.close", "code": 1008}])


async def test_the_start_of_the_server_passes(guard: Guard) -> None:
    assert (await passed(guard, {"type": "lifespan"}))[0]
