"""Pages of the console cannot be framed, not even by a page of another port of this machine, which gets the cookie."""

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from libs.keys import KeyRing, digest
from services.analytics.console.door.guard import COOKIE, SignedIn
from services.analytics.console.door.sessions import Sessions

KEY = "lexi_ann"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    (tmp_path / "keys.json").write_text(json.dumps([{"name": "ann", "sha256": digest(KEY), "scopes": ["read"]}]))
    sessions = Sessions(KeyRing.load(tmp_path / "keys.json"))
    app = FastAPI()

    @app.get("/")
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("a page")

    @app.get("/strict")
    async def strict() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("a page", headers={"Referrer-Policy": "no-referrer"})

    app.add_middleware(SignedIn, sessions=sessions)
    found = sessions.sign_in(KEY)
    assert found is not None
    client = TestClient(app)
    client.cookies.set(COOKIE, found[0])
    return client


def test_a_page_says_that_it_is_not_to_be_framed(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.text == "a page"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_what_a_page_says_itself_stays(client: TestClient) -> None:
    assert client.get("/strict").headers["referrer-policy"] == "no-referrer"
