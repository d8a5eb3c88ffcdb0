"""The control plane as it runs, on a real database and a fake engine at the wire."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from libs.keys import ensure_operator_key
from libs.service_settings import ListenSettings
from libs.settings import load
from services.api.app import open_app
from services.api.settings import ApiSettings
from tools.local_stack.postgres import EmbeddedPostgres

T = TypeVar("T")


async def until(read: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """What `read` gives once it is `good`; the test's own timeout ends a wait for ever."""
    while True:
        found = await read()
        if good(found):
            return found
        await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Stack:
    """A running control plane; `http` sends the operator's key."""

    http: httpx.AsyncClient
    front: ASGIApp
    app: FastAPI
    token: str


def environment(database_url: str, model_url: str, state: Path, **more: str) -> dict[str, str]:
    """What a service of ours reads."""
    return {
        "DATABASE_URL": database_url,
        "LLM_BASE_URL": model_url,
        "LOCAL_STATE": str(state),
        "LLM_CONNECT_TIMEOUT_S": "1",
        **more,
    }


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, database_url: str, model_url: str, state: Path, **more: str
) -> AsyncGenerator[Stack, None]:
    """The app, opened as its process opens it."""
    for name, value in environment(database_url, model_url, state, **more).items():
        monkeypatch.setenv(name, value)
    listen, settings = load(ListenSettings), load(ApiSettings)
    token = ensure_operator_key(listen.keys_path, listen.local_state)
    async with open_app(listen, settings) as app:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers, timeout=60) as http:
            yield Stack(http=http, front=app, app=app.control_plane, token=token)


@contextmanager
def database_away(postgres: EmbeddedPostgres, database_url: str) -> Generator[None, None, None]:
    """Nobody reaches the database inside the block, and connections there were are gone."""
    name = urlsplit(database_url).path.strip("/")
    postgres.query(f"alter database {name} allow_connections false")
    postgres.query(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    try:
        yield
    finally:
        postgres.query(f"alter database {name} allow_connections true")
