"""The console's door: who is let in, for how long, and what stays shut."""

import json
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from libs.http_door import Door
from libs.keys import KeyRing, digest
from services.analytics.console.door.guard import COOKIE, SIGN_IN, SignedIn, place_after
from services.analytics.console.door.sessions import IDLE_S, LONGEST_S, MOST_SESSIONS, Sessions
from services.analytics.console.door.signing_in import signing_in

ANN, BOB, TRADER = "lexi_ann", "lexi_bob", "lexi_trader"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_keys(path: Path, scopes: dict[str, list[str]]) -> None:
    entries = [{"name": token[5:], "sha256": digest(token), "scopes": its} for token, its in scopes.items()]
    path.write_text(json.dumps(entries))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write_keys(path, {ANN: ["read", "switch"], BOB: ["read"], TRADER: ["trade"]})
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(key_file: Path, clock: Clock) -> Sessions:
    return Sessions(KeyRing.load(key_file), clock=clock)


@pytest.fixture
def client(sessions: Sessions) -> TestClient:
    app = FastAPI()
    app.include_router(signing_in(sessions))

    @app.get("/")
    @app.get("/analytics/recent")
    @app.get("/metrics")
    async def page(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        session = request.scope.get("console_session")
        return PlainTextResponse("nobody" if session is None else session.name)

    @app.post("/press")
    async def press() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("pressed")

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await websocket.accept()
        await websocket.close()

    app.add_middleware(SignedIn, sessions=sessions)
    return TestClient(app, follow_redirects=False)


def sign_in(client: TestClient, key: str = ANN, wanted: str = "/") -> httpx.Response:
    return client.post(SIGN_IN, data={"key": key, "next": wanted})  # pyright: ignore[reportReturnType] - httpx of its own


def test_a_page_sends_to_the_sign_in_and_back(client: TestClient) -> None:
    refused = client.get("/?ticker=A&x=1")
    assert refused.status_code == 303
    assert refused.headers["location"] == "/sign-in?next=/%3Fticker%3DA%26x%3D1"
    done = sign_in(client, wanted="/?ticker=A&x=1")
    assert (done.status_code, done.headers["location"]) == (303, "/?ticker=A&x=1")
    said = done.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert ANN not in said
    assert client.get("/").text == "ann"


@pytest.mark.parametrize("key", ["", "lexi_wrong", TRADER])
def test_a_wrong_key_and_one_that_may_not_read_are_refused(client: TestClient, key: str) -> None:
    refused = sign_in(client, key or " ")
    assert refused.status_code == 401
    assert "not known here" in refused.text
    assert COOKIE not in client.cookies


def test_a_press_without_a_session_is_refused_and_not_redirected(client: TestClient) -> None:
    assert client.post("/press").status_code == 401
    sign_in(client)
    assert client.post("/press").text == "pressed"


def test_routes_with_a_guard_of_their_own_and_probes_stay_as_they_are(client: TestClient) -> None:
    assert client.get("/analytics/recent").text == "nobody"
    assert client.get("/metrics").text == "nobody"


def test_a_websocket_needs_a_session(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/live"):
        pass
    assert refused.value.code == 4401
    sign_in(client)
    with client.websocket_connect("/live"):
        pass


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://desk.example", "desk.example"),
        ("https://desk.example", "desk.example:443"),
        ("https://desk.example", "127.0.0.1:8002"),
        ("https://desk.example:8443", "desk.example"),
        ("http://127.0.0.1:8002", "127.0.0.1:8002"),
    ],
)
def test_a_page_that_may_post_may_open_its_websocket_too(client: TestClient, origin: str, host: str) -> None:
    """One rule says which pages are ours: with two, a proxy's pages would load and stay dead."""
    client = TestClient(Door(client.app, names=["desk.example"]), follow_redirects=False)
    sent = {"origin": origin, "host": host}
    done = client.post(SIGN_IN, data={"key": BOB}, headers=sent)
    cookie = {"cookie": f"{COOKIE}={done.cookies[COOKIE]}"}
    assert client.post("/press", headers=sent | cookie).text == "pressed"
    with client.websocket_connect("/live", headers=sent | cookie):
        pass


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://127.0.0.1:3000"])
def test_a_page_of_another_origin_may_neither(client: TestClient, origin: str) -> None:
    sign_in(client)
    sent = {"origin": origin, "host": "127.0.0.1:8002", "cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    client = TestClient(Door(client.app))
    assert client.post("/press", headers=sent).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/live", headers=sent):
        pass


@pytest.mark.parametrize(
    ("origin", "secure"), [("https://desk.example", True), ("http://127.0.0.1:8002", False), (None, False)]
)
def test_the_cookie_keeps_to_tls_where_the_sign_in_came_by_it(
    client: TestClient, origin: str | None, *, secure: bool
) -> None:
    """The proxy in front speaks it, and what reaches us is plain."""
    done = client.post(SIGN_IN, data={"key": BOB}, headers={} if origin is None else {"origin": origin})
    assert ("; secure" in done.headers["set-cookie"].lower()) == secure


def test_a_page_that_lost_its_websocket_can_ask_whether_its_session_lasts(client: TestClient) -> None:
    before = client.get("/signed-in", follow_redirects=False)
    assert (before.status_code, before.headers["location"]) == (303, f"{SIGN_IN}?next=/signed-in")
    client.post(SIGN_IN, data={"key": ANN}, follow_redirects=False)
    assert client.get("/signed-in", follow_redirects=False).status_code == 204


def test_signing_out_needs_the_sessions_own_form(client: TestClient, sessions: Sessions) -> None:
    sign_in(client)
    cookie = client.cookies[COOKIE]
    client.post("/sign-out", data={"form_token": "another"})
    assert sessions.find(cookie) is not None
    session = sessions.find(cookie)
    assert session is not None
    client.cookies.set(COOKIE, cookie)
    client.post("/sign-out", data={"form_token": session.form_token})
    assert sessions.find(cookie) is None


def test_a_session_ends_when_idle_and_after_a_shift(sessions: Sessions, clock: Clock) -> None:
    found = sessions.sign_in(ANN)
    assert found is not None
    cookie, begun = found[0], clock.now
    while clock.now - begun + IDLE_S / 2 < LONGEST_S:
        clock.now += IDLE_S / 2
        assert sessions.find(cookie) is not None
    clock.now += IDLE_S
    assert sessions.find(cookie) is None
    again = sessions.sign_in(ANN)
    assert again is not None
    clock.now += IDLE_S + 1
    assert sessions.find(again[0]) is None


def test_a_key_that_is_taken_away_ends_its_sessions_and_new_scopes_hold_at_once(
    sessions: Sessions, key_file: Path
) -> None:
    ann, bob = sessions.sign_in(ANN), sessions.sign_in(BOB)
    assert ann is not None
    assert bob is not None
    write_keys(key_file, {BOB: ["read", "panic", "admin"]})
    assert sessions.find(ann[0]) is None
    session = sessions.find(bob[0])
    assert session is not None
    assert session.may("panic")


def test_there_is_a_bound_and_the_longest_unseen_goes_first(sessions: Sessions, clock: Clock) -> None:
    cookies: list[str] = []
    for _ in range(MOST_SESSIONS + 1):
        clock.now += 0.001
        found = sessions.sign_in(BOB)
        assert found is not None
        cookies.append(found[0])
    assert sessions.find(cookies[0]) is None
    assert all(sessions.find(cookie) for cookie in (cookies[1], cookies[-1]))


def test_a_key_is_never_shown_by_the_session(sessions: Sessions) -> None:
    found = sessions.sign_in(ANN)
    assert found is not None
    assert ANN not in repr(found[1])


@given(st.text(max_size=60))
def test_what_comes_after_the_sign_in_is_a_path_of_ours(wanted: str) -> None:
    place = place_after(wanted)
    assert place.startswith("/")
    assert not place.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "wanted", ["/\t/evil.test", "//evil.test", "https://evil.test", "/\\evil.test", "javascript:alert(1)", SIGN_IN, ""]
)
def test_other_sites_and_the_sign_in_itself_lead_to_the_first_page(wanted: str) -> None:
    assert place_after(wanted) == "/"
