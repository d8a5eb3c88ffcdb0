"""The panic page before an api that is armed, not armed, or away: what it offers, and what it says once."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import KeyRing, digest
from services.analytics.console.door.guard import SignedIn
from services.analytics.console.door.sessions import Sessions
from services.analytics.console.door.signing_in import signing_in
from services.analytics.console.house import House
from services.analytics.console.layout.frame import Console
from services.analytics.console.live import Live
from services.analytics.console.pages.panic.page import panic
from services.analytics.console.pages.panic.queries import told_of
from services.analytics.console.pages.panic.words import Known

TOKEN = "lexi_ann"
EXIT = UUID("8e3fc807-ced1-4f4c-8832-b0b96f8920fa")
BEGUN = datetime(2026, 11, 22, 18, 29, 22, tzinfo=UTC)
Api = Callable[[httpx.Request], httpx.Response]


@asynccontextmanager
async def desk(engine: AsyncEngine, folder: Path, api: Api) -> AsyncGenerator[httpx.AsyncClient]:
    """Somebody signed in before this api."""
    scopes = '["read", "panic", "rearm"]'
    (folder / "keys.json").write_text(f'[{{"name": "ann", "sha256": "{digest(TOKEN)}", "scopes": {scopes}}}]')
    sessions = Sessions(KeyRing.load(folder / "keys.json"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(api)) as client:
        house = House(client, api_url="http://api")
        app = FastAPI()
        app.include_router(signing_in(sessions))
        app.include_router(panic(Console(engine, house, sessions, Live(engine, house))))
        app.add_middleware(SignedIn, sessions=sessions)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk") as browser:
            await browser.post("/sign-in", data={"key": TOKEN})
            yield browser


def token_in(page: str) -> str:
    return page.partition('name="form_token" value="')[2].partition('"')[0]


def halt(**changed: Any) -> httpx.Response:
    state: dict[str, Any] = {"halted": False, "reason": None, "halted_until": None, "halts": [], "panic_enabled": True}
    return httpx.Response(200, json={**state, "latest_exit": None, **changed})


async def test_the_list_is_offered_where_panic_is_not_armed(engine: AsyncEngine, tmp_path: Path) -> None:
    def api(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(403, json={"detail": "panic exit disabled"})
        return halt(panic_enabled=False)

    async with desk(engine, tmp_path, api) as browser:
        page = (await browser.get("/panic")).text
        assert "List what would be closed" in page
        assert "Panic: get flat now" not in page
        for words in ("touch .local/panic.enabled", "ENABLE_PANIC_EXIT=1", "make panic DRY_RUN=1"):
            assert words in page
        page = (await browser.post("/panic/dry-run", data={"form_token": token_in(page)})).text
    assert "The list of what would be closed: nothing was done: panic exit disabled." in page


async def test_an_api_that_is_away_is_said_once(engine: AsyncEngine, tmp_path: Path) -> None:
    def api(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with desk(engine, tmp_path, api) as browser:
        page = (await browser.get("/panic")).text
        assert "Panic: get flat now" in page
        page = (await browser.post("/panic/dry-run", data={"form_token": token_in(page)})).text
    assert page.count("does not answer") == 1
    assert "no answer came, so it is not known whether anything was done" in page


async def test_after_a_re_arm_the_latest_exit_is_history(engine: AsyncEngine, tmp_path: Path) -> None:
    steps = [
        {"at": BEGUN.isoformat(), "action": "begun", "result": {"reason": "a runaway"}},
        {"at": "2026-11-22T18:29:23.847+00:00", "action": "ended", "result": {"state": "FLAT"}},
    ]
    counts: dict[str, Any] = {"positions_closed": 2, "orders_cancelled": 0, "failures": []}

    def api(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/strategist/halt":
            return halt(latest_exit=str(EXIT))
        return httpx.Response(200, json={"state": "FLAT", "steps": steps, **counts})

    await pressed(engine, "a runaway", at="2026-11-22 18:29:24Z", by="ann")
    await rearmed(engine, EXIT)
    async with desk(engine, tmp_path, api) as browser:
        page = (await browser.get("/panic")).text
    assert "The latest exit ended FLAT at 2026-11-22 18:29:23 UTC" in page
    assert "Begun at 2026-11-22 18:29:22 UTC, by ann: a runaway" in page
    assert "Entries were let in again at 2026-11-22 18:40:00 UTC by bob: it was a rehearsal." in page
    assert "nothing is held" not in page.lower()
    assert page.count('class="good"') == 1, "only that entries may be made"


@pytest.mark.parametrize(
    ("reason", "outcome", "at", "by"),
    [
        ("a runaway", "FLAT", "2026-11-22 18:29:24Z", "ann"),
        ("a runaway", "0 the api does not answer", "2026-11-22 18:29:24Z", "ann"),
        ("a runaway", "409 no", "2026-11-22 18:29:24Z", None),
        ("another", "FLAT", "2026-11-22 18:29:24Z", None),
        ("a runaway", "FLAT", "2026-11-22 17:00:00Z", None),
    ],
)
async def test_who_pressed_is_whoever_began_it(
    engine: AsyncEngine, reason: str, outcome: str, at: str, by: str | None
) -> None:
    await pressed(engine, reason, at=at, by="ann", outcome=outcome)
    assert await told_of(engine, uuid4(), (BEGUN, "a runaway")) == Known(by)


async def pressed(engine: AsyncEngine, reason: str, *, at: str, by: str, outcome: str = "FLAT") -> None:
    statement = text(
        "insert into presses (at, key_name, action, reason, outcome) "
        "values (cast(:at as text)::timestamptz, :by, 'panic exit', :reason, :outcome)"
    )
    async with engine.begin() as connection:
        await connection.execute(statement, {"at": at, "by": by, "reason": reason, "outcome": outcome})


async def rearmed(engine: AsyncEngine, exit_id: UUID) -> None:
    statement = text(
        "insert into halts (id, reason, halted_at, halted_until, rearmed_at, rearmed_by, rearm_reason) values "
        "(:id, 'a runaway', :at, :at, '2026-11-22 18:40Z', 'bob', 'it was a rehearsal')"
    )
    async with engine.begin() as connection:
        await connection.execute(statement, {"id": exit_id, "at": BEGUN})
