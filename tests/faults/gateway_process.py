"""The gateway as a process of its own, between fake engines and a database, for tests that see it from outside only."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import Row

from libs.db.engine import DatabaseSettings, create_engine
from libs.keys import Key, digest
from tests.fakes.engine import FakeEngine
from tools.local_stack.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
TEMPLATE = "template_lexi"
PATIENCE_S = 30.0
NOWHERE = "http://127.0.0.1:9/v1"
FOREIGN = ("LLM_", "API_", "DATABASE_", "UPSTREAMS_", "LOCAL_STATE", "PYTEST", "PROMPTS_")
SLOTS = "lexi_upstream_slots_in_use"

T = TypeVar("T")

_numbers = count()


def token(name: str) -> str:
    """The key of a caller of that name."""
    return f"lexi_test_{name}_{'x' * 24}"


def caller(name: str, **more: Any) -> Key:
    """An entry of the key file; `more` are its fields."""
    return Key.model_validate(
        {"name": name, "sha256": digest(token(name)), "scopes": {"infer"}, "cache": "off", **more}
    )


def place(name: str, base_url: str, **more: Any) -> dict[str, Any]:
    """An entry of the file of upstreams: a model of the same name, and a share for the api, unless `more` says so."""
    slots = more.pop("slots", 64)
    given = {"name": name, "model": name, "base_url": base_url, "dialect": "vllm", "slots": slots}
    return {**given, "shares": {"api": slots}, **more}


async def eventually(look: Callable[[], Awaitable[T]], *, what: str, within_s: float = PATIENCE_S) -> T:
    """Ask an async function again and again until it gives something true; fail naming what was waited for."""
    ends = monotonic() + within_s
    while monotonic() < ends:
        if found := await look():
            return found
        await asyncio.sleep(0.02)
    pytest.fail(f"not within {within_s:g} s: {what}")


class Gateway:
    """One `python -m services.api` with files, database and port of its own.

    `callers` are the entries of its key file, `places` those of its file of upstreams beside `lexi`, which answers at
    `lexi_url`. `settings` are environment variables.
    """

    def __init__(self, postgres: EmbeddedPostgres, folder: Path, *, lexi_url: str = NOWHERE, **settings: str) -> None:
        self.folder = folder
        self.postgres = postgres
        self.database = f"gateway{os.getpid()}_{next(_numbers)}"
        self.settings = settings
        self.process: asyncio.subprocess.Process | None = None
        self.http = httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=httpx.Limits(max_connections=None))
        self.upstreams_file = folder / "upstreams.yaml"
        self._keys_file = folder / "keys.json"
        self._lexi_url = lexi_url
        address = DatabaseSettings(database_url=SecretStr(postgres.url(self.database)))
        self._rows = create_engine(address, application="test", pool_size=1)
        self.port = 0

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def write_keys(self, callers: Iterable[Key]) -> None:
        """Replace the key file."""
        entries = [entry.model_dump(mode="json") for entry in callers]
        self._keys_file.write_text(json.dumps(entries), encoding="utf-8")

    def write_places(self, places: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file of upstreams."""
        lexi = {"name": "lexi", "dialect": "vllm", "slots": 64, "shares": {"api": 64}}
        self.write_upstreams(yaml.safe_dump({"upstreams": [lexi, *map(dict, places)]}))

    def write_upstreams(self, text: str) -> None:
        """Replace the file of upstreams by any text, in one step as editors do."""
        fresh = self.upstreams_file.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.upstreams_file)

    async def start(self) -> None:
        """Start it, on a database that was made for it, and wait until it answers."""
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port = held.getsockname()[1]
        known = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        ours = {
            "DATABASE_URL": self.postgres.url(self.database),
            "LLM_BASE_URL": self._lexi_url,
            "LOCAL_STATE": str(self.folder),
            "API_KEYS_FILE": str(self._keys_file),
            "UPSTREAMS_FILE": str(self.upstreams_file),
            "API_PORT": str(self.port),
            **self.settings,
        }
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.api", cwd=ROOT, env=known | ours, stdout=log, stderr=log
            )
        await eventually(self._answers, what="the gateway answers")

    async def _answers(self) -> bool:
        assert self.process is not None
        if self.process.returncode is not None:
            raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log()}")
        with contextlib.suppress(httpx.TransportError):
            return (await self.http.get(f"{self.url}/ready")).status_code == 200
        return False

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "gateway.log").read_text(encoding="utf-8")

    async def ready(self) -> str:
        """The lines of `/ready`."""
        return (await self.http.get(f"{self.url}/ready")).text

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels; 0 where there is none."""
        text = (await self.http.get(f"{self.url}/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))

    async def query(self, sql: str, **values: object) -> list[Row[Any]]:
        """Rows of its database."""
        async with self._rows.connect() as connection:
            return list((await connection.execute(text(sql), values)).all())

    async def row(self, request_id: str) -> Row[Any]:
        """The row of a request, once it is there; fails when there are two."""

        async def look() -> list[Row[Any]]:
            return await self.query("select * from llm_calls where request_id = :id", id=request_id)

        rows = await eventually(look, what=f"the row of {request_id}")
        assert len(rows) == 1, rows
        return rows[0]

    async def idle(self, *fakes: FakeEngine) -> None:
        """Wait until no slot is taken, neither on our side nor at the engines."""

        async def look() -> bool:
            return await self.metric(SLOTS) == 0 and not any(fake.active or fake.waiting for fake in fakes)

        await eventually(look, what="every slot is free")

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def close(self) -> None:
        """End it in any case."""
        await self.http.aclose()
        await self._rows.dispose()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def gateway_before(
    postgres: EmbeddedPostgres,
    places: Iterable[Mapping[str, Any]],
    callers: Iterable[Key],
    *,
    lexi_url: str = NOWHERE,
    **settings: str,
) -> AsyncGenerator[Gateway, None]:
    """A gateway that runs inside the block, with a database that is dropped after it."""
    with tempfile.TemporaryDirectory(prefix="lexi-gateway-", ignore_cleanup_errors=True) as folder:
        gateway = Gateway(postgres, Path(folder), lexi_url=lexi_url, **settings)
        await asyncio.to_thread(postgres.ensure_database, gateway.database, template=TEMPLATE)
        gateway.write_keys(callers)
        gateway.write_places(places)
        try:
            await gateway.start()
            yield gateway
        finally:
            await gateway.close()
