"""What every server of ours lets in: asked for by its own name, from its own pages, by a path that reads in one way."""

import json
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.http_door import MOST_HEADER_BYTES, MOST_HEADERS, SERVICES, Door, DoorSettings, Refusal, check_path
from libs.settings import SettingsError, load
from tests.unit.door_server import ask, get, server, upgrade


@pytest.fixture(scope="module")
def port() -> Generator[int]:
    with server(ALLOWED_HOSTS="desk.example, lexi.example") as there:
        yield there


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8001",
        "localhost:1",
        "LOCALHOST",
        "[::1]:80",
        "10.1.2.3",
        "localhost.:8001",
        "desk.example",
        "Lexi.Example:443",
        "desk.example.",
    ],
)
def test_a_service_answers_under_its_own_names(port: int, host: str) -> None:
    assert get(port, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test:8001", "localhost.evil.test", "api.evil.test", "1", *sorted(SERVICES)]
)
def test_another_name_is_refused_wherever_it_leads(port: int, host: str) -> None:
    status, answer = get(port, host=host)
    assert status == 421
    assert "ALLOWED_HOSTS" in answer


def test_the_names_of_containers_count_where_more_than_loopback_listens() -> None:
    """On loopback a page could ask by them, where its network says that they are at 127.0.0.1."""
    with server(host="0.0.0.0") as there:
        for name in ("api:8001", "llm-sidecar", "host.docker.internal:8000", "127.0.0.1"):
            assert get(there, host=name)[0] == 200
        assert get(there, host="evil.test")[0] == 421


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_no_path_is_exempt(port: int, path: str) -> None:
    assert get(port, path, host="evil.test")[0] == 421


@pytest.mark.parametrize(
    "host", ["", "a b", "user@localhost", "localhost/x", "localhost:port", "[::1", "\xe9", "a" * 300]
)
def test_a_host_that_is_none_is_refused(port: int, host: str) -> None:
    assert get(port, host=host)[0] == 400


def test_two_hosts_none_and_one_in_the_address_are_refused(port: int) -> None:
    assert get(port, more="Host: evil.test\r\n")[0] == 400
    assert ask(port, "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")[0] == 400
    assert get(port, "http://localhost/x", host="evil.test")[0] == 421


def test_a_probe_in_http_1_0_needs_no_host_and_gets_past_nothing_else(port: int) -> None:
    assert ask(port, "GET /health HTTP/1.0\r\n\r\n")[0] == 200
    assert ask(port, "GET /health HTTP/1.0\r\nHost: evil.test\r\n\r\n")[0] == 421
    assert ask(port, "GET /a//b HTTP/1.0\r\n\r\n")[0] == 400
    for origin, status in (("http://evil.test", 403), ("null", 403), ("https://desk.example", 200)):
        assert ask(port, f"POST /x HTTP/1.0\r\nOrigin: {origin}\r\nContent-Length: 0\r\n\r\n")[0] == status


def test_a_star_switches_the_check_off_and_nothing_else() -> None:
    with server(ALLOWED_HOSTS="*") as there:
        assert get(there, host="evil.test")[0] == 200
        assert get(there, "/a//b", host="evil.test")[0] == 400


@pytest.mark.parametrize("value", ["http://desk.example", "desk.example:443", "desk example", "*.example"])
def test_a_wrong_setting_stops_the_start_and_names_the_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", value)
    with pytest.raises(SettingsError, match="ALLOWED_HOSTS"):
        load(DoorSettings)


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "http://localhost:3000", "http://127.0.0.1:1", "http://[", "app://x"]
)
def test_a_page_of_another_origin_may_change_nothing(port: int, origin: str) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        assert get(port, host="127.0.0.1:8000", method=method, more=f"Origin: {origin}\r\n")[0] == 403


def test_of_two_origins_neither_counts(port: int) -> None:
    ours, evil = "Origin: http://127.0.0.1:8000\r\n", "Origin: http://evil.test\r\n"
    for more in (evil + ours, ours + evil, ours + ours):
        assert get(port, host="127.0.0.1:8000", method="POST", more=more)[0] == 400


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://127.0.0.1:8000", "https://desk.example"])
def test_a_page_of_ours_may(port: int, origin: str) -> None:
    assert get(port, host="127.0.0.1:8000", method="POST", more=f"Origin: {origin}\r\n")[0] == 200


def test_websockets_are_asked_the_same(port: int) -> None:
    assert upgrade(port, host="127.0.0.1:8002", origin="http://127.0.0.1:8002") == 101
    assert upgrade(port, host="127.0.0.1:8002", origin=None) == 101
    assert upgrade(port, host="127.0.0.1:8002", origin="http://evil.test") == 403
    assert upgrade(port, host="127.0.0.1:8002", origin="http://127.0.0.1:3000") == 403
    assert upgrade(port, host="evil.test", origin="http://evil.test") == 403


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/x", "/x"),
        ("/a/b/", "/a/b/"),
        ("/a%20b", "/a b"),
        ("/caf%C3%A9", "/caf\u00e9"),
        ("/a%252e%252e", "/a%2e%2e"),
        ("/v1/models/org%2Fname", "/v1/models/org/name"),
        ("/v1/models/%2541", "/v1/models/%41"),
        ("/v1/models/a%7Eb~", "/v1/models/a~b~"),
        ("/.well-known/x", "/.well-known/x"),
        ("/x?u=//..//%2f", "/x"),
        ("http://localhost/x", "/x"),
    ],
)
def test_a_path_is_decoded_once(port: int, path: str, seen: str) -> None:
    status, answer = get(port, path)
    assert status == 200
    assert answer.encode("latin-1").decode().endswith(f"\r\n\r\n{seen} 0")


READ_IN_TWO_WAYS = """
//x /a//b /a/../b /.. /a/./b /a/. /a%2fb /llm%2Fadmin/calls /v1%2fmodels/x /v1/models%2Fx /%2e%2e/x
/a%5cb /a\\b /%00 /%0d%0a /%7f /% /%4 /%zz /%76%31/chat/completions /v1/models/..%2f..
/v1/models/a%2F%2Fb /v1/models/a/../../x http://localhost//x
"""


@pytest.mark.parametrize("path", READ_IN_TWO_WAYS.split())
def test_a_path_that_reads_in_two_ways_is_refused(port: int, path: str) -> None:
    assert get(port, path)[0] == 400


@given(st.binary(max_size=12).map(lambda tail: b"/" + tail), st.binary(max_size=3))
def test_what_passes_means_the_same_before_and_after_decoding(path: bytes, escaped: bytes) -> None:
    raw = path.replace(b"?", b"") + b"".join(b"%%%02x" % code for code in escaped)
    try:
        check_path(raw)
    except Refusal:
        return
    assert raw.count(b"/") == raw.replace(b"%2f", b"/").count(b"/")
    assert not {b".", b".."} & set(raw.split(b"/"))


def test_an_error_under_v1_is_one_that_the_official_clients_read(port: int) -> None:
    _, answer = get(port, "/v1/chat/completions", host="evil.test")
    error = json.loads(answer.partition("\r\n\r\n")[2])["error"]
    assert error["code"] == "refused_host"
    assert error["message"]


def test_heads_are_bounded_in_number_and_size(port: int) -> None:
    few = "".join(f"X-{number}: 1\r\n" for number in range(MOST_HEADERS - 2))
    assert get(port, more=few)[0] == 200
    assert get(port, more=few + "X: 1\r\n")[0] == 431
    assert get(port, more=f"X: {'a' * MOST_HEADER_BYTES}\r\n")[0] == 431
    assert get(port, more=f"Cookie: {'a' * (MOST_HEADER_BYTES - 200)}\r\n")[0] == 200


async def test_the_door_stands_before_what_it_guards() -> None:
    """Nothing of a refused request reaches the app, and what is neither request nor websocket passes."""
    reached: list[str] = []

    async def app(scope: object, _receive: object, _send: object) -> None:
        reached.append(scope["type"])  # type: ignore[index]

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(_message: object) -> None:
        return

    door = Door(app)
    request = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "headers": [(b"host", b"evil.test")],
    }
    await door(request, receive, send)
    await door({"type": "lifespan"}, receive, send)
    assert reached == ["lifespan"]
