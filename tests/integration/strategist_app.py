"""The strategist's routes alone, on a real database, with a key for each scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.http_app import Edge, frame
from libs.keys import ALL_SCOPES, KeyRing, Scope, create_key


@dataclass(frozen=True, slots=True)
class Desk:
    """The app as its callers see it; `keys` are by scope."""

    http: httpx.AsyncClient
    keys: dict[Scope, str]

    async def send(self, method: str, path: str, *, scope: Scope | None, body: Any = None) -> httpx.Response:
        """A request with the key that has this scope alone."""
        headers = {} if scope is None else {"Authorization": f"Bearer {self.keys[scope]}"}
        return await self.http.request(method, f"/strategist{path}", json=body, headers=headers)


def desk_of(routers: Sequence[APIRouter], engine: AsyncEngine, folder: Path, *, strategist: object = None) -> Desk:
    """An app with these routers."""
    path = folder / "keys.json"
    keys: dict[Scope, str] = {scope: create_key(path, f"has-{scope}", frozenset({scope})) for scope in ALL_SCOPES}
    app = frame(title="test", keys=KeyRing.load(path), checks={})
    app.state.api = SimpleNamespace(engine=engine)
    app.state.strategist = strategist
    for router in routers:
        app.include_router(router)
    transport = httpx.ASGITransport(Edge(app, max_body_bytes=65536))
    return Desk(http=httpx.AsyncClient(transport=transport, base_url="http://api", timeout=60), keys=keys)
