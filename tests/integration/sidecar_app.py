"""The sidecar as it runs, before fake engines at the wire."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from libs.http_app import Edge
from libs.keys import ensure_operator_key
from libs.service_settings import ListenSettings
from libs.settings import load
from services.sidecar.app import open_app
from services.sidecar.settings import SidecarSettings
from tests.fakes.engine import FakeEngine

NOWHERE = "http://127.0.0.1:9/v1"
PROPOSAL: dict[str, Any] = {
    "ticker": "AAPL",
    "action": "adjust",
    "side": "LONG",
    "new_stop_pct": 1.5,
    "new_target_pct": None,
    "confidence": 0.7,
    "rationale": "The price has run ahead.",
}
VALID = json.dumps(PROPOSAL)


def entry(name: str, base_url: str, model: str, **more: Any) -> dict[str, Any]:
    """An entry of the file of upstreams, with a share for the sidecar."""
    given = {"name": name, "base_url": base_url, "model": model, "dialect": "vllm", "slots": 8}
    return {**given, "shares": {"sidecar": 8}, **more}


def write_upstreams(path: Path, *entries: Mapping[str, Any]) -> None:
    """The file of upstreams: `lexi`, and what is given."""
    lexi = {"name": "lexi", "dialect": "vllm", "slots": 8, "shares": {"sidecar": 8}}
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"upstreams": [lexi, *map(dict, entries)]}), encoding="utf-8")
    fresh.replace(path)


@asynccontextmanager
async def sidecar(
    monkeypatch: pytest.MonkeyPatch, state: Path, *entries: Mapping[str, Any], keyed: bool = False, **settings: str
) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of the app; `settings` are environment variables. It sends the operator's key where `keyed`."""
    write_upstreams(state / "upstreams.yaml", *entries)
    known = {
        "LOCAL_STATE": str(state),
        "UPSTREAMS_FILE": str(state / "upstreams.yaml"),
        "LLM_BASE_URL": NOWHERE,
        "LLM_CONNECT_TIMEOUT_S": "1",
        "LLM_FIRST_TOKEN_TIMEOUT_S": "1",
        "LLM_IDLE_TIMEOUT_S": "1",
    }
    for name, value in {**known, **settings}.items():
        monkeypatch.setenv(name, value)
    listen, sidecar_settings = load(ListenSettings), load(SidecarSettings)
    token = ensure_operator_key(listen.keys_path, listen.local_state)
    headers = {"Authorization": f"Bearer {token}"} if keyed else {}
    async with open_app(listen, sidecar_settings) as app:
        edge = Edge(app, max_body_bytes=sidecar_settings.sidecar_max_body_bytes)
        transport = httpx.ASGITransport(edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://sidecar", headers=headers) as http:
            http.timeout = httpx.Timeout(60)
            yield http


@asynccontextmanager
async def two_models() -> AsyncGenerator[tuple[FakeEngine, FakeEngine], None]:
    """Hermes and Phi-3, each on a server of its own."""
    hermes = FakeEngine(model="Hermes", reply="It fits the request.")
    phi3 = FakeEngine(model="Phi-3", reply=VALID)
    async with hermes, phi3:
        yield hermes, phi3


def entries_of(hermes: FakeEngine, phi3: FakeEngine) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their entries."""
    return entry("hermes", hermes.base_url, "Hermes"), entry("phi3", phi3.base_url, "Phi-3")
