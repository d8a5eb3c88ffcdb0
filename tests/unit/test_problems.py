"""Errors over HTTP, and the edge that every request passes: ids, bounds, bugs."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

from libs.http_app import Edge, frame
from libs.keys import KeyRing
from libs.problems import Conflict, Unavailable

LIMIT = 1000


class Order(BaseModel):
    ticker: str
    legs: list[int] = []


def build(tmp_path: Path) -> FastAPI:
    app = frame(title="test", keys=KeyRing.load(tmp_path / "keys.json"), checks={})

    @app.post("/orders")
    def orders(order: Order) -> str:
        return order.ticker

    @app.get("/conflict")
    def conflict() -> None:
        raise Conflict("there is one already", extra={"order": 7})

    @app.get("/later")
    def later() -> None:
        raise Unavailable("busy", headers={"Retry-After": "3"})

    @app.get("/bug")
    def bug() -> None:
        raise KeyError("secret-detail")

    @app.get("/database/{kind}")
    def database(kind: str) -> None:
        raise {
            "away": OperationalError("select", {}, Exception("gone")),
            "refused": ConnectionRefusedError(111, "refused"),
            "slow": TimeoutError(),
            "crowded": PoolTimeout(),
            "bug": IntegrityError("insert", {}, Exception("twice")),
        }[kind]

    assert orders
    assert conflict
    assert later
    assert bug
    assert database
    return app


@pytest.fixture
async def http(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = httpx.ASGITransport(Edge(build(tmp_path), max_body_bytes=LIMIT))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    return body


async def test_our_problems_carry_their_members_and_headers(http: httpx.AsyncClient) -> None:
    body = assert_problem(await http.get("/conflict"), 409)
    assert (body["detail"], body["order"]) == ("there is one already", 7)
    assert (await http.get("/later")).headers["retry-after"] == "3"


async def test_unknown_routes_and_methods_are_named(http: httpx.AsyncClient) -> None:
    assert "/nowhere" in assert_problem(await http.get("/nowhere"), 404)["detail"]
    answer = await http.delete("/orders")
    assert "DELETE" in assert_problem(answer, 405)["detail"]
    assert answer.headers["allow"] == "POST"


async def test_invalid_fields_are_named_and_not_repeated(http: httpx.AsyncClient) -> None:
    body = assert_problem(await http.post("/orders", json={"ticker": 5, "legs": [1, "my-secret"]}), 422)
    assert [error["field"] for error in body["errors"]] == ["ticker", "legs.1"]
    assert body["detail"].startswith("ticker: ")
    assert "my-secret" not in str(body)


@pytest.mark.parametrize("sent", [b"{", b'{"ticker": }', b"nonsense"])
async def test_a_body_that_is_not_json_is_said_so(http: httpx.AsyncClient, sent: bytes) -> None:
    answer = await http.post("/orders", content=sent, headers={"Content-Type": "application/json"})
    assert "not JSON" in assert_problem(answer, 400)["detail"]


@pytest.mark.parametrize("sent", [b"\xff\xfe", b"[" * 900, b'{"ticker": ' + b"9" * 900])
async def test_a_body_nobody_can_read_is_the_callers_fault(http: httpx.AsyncClient, sent: bytes) -> None:
    answer = await http.post("/orders", content=sent, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_without_its_type_is_refused(http: httpx.AsyncClient) -> None:
    assert_problem(await http.post("/orders", content=b'{"ticker": "IBM"}'), 422)


@pytest.mark.parametrize(("kind", "status"), [("away", 503), ("refused", 503), ("bug", 500)])
async def test_a_database_away_is_503_and_a_mistake_of_ours_500(
    http: httpx.AsyncClient, kind: str, status: int
) -> None:
    assert_problem(await http.get(f"/database/{kind}"), status)


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("away", "the database cannot be reached at the moment"),
        ("slow", "the database did not answer within 5 s"),
        ("crowded", "no connection to the database came free within 5 s"),
    ],
)
async def test_a_database_away_says_which_limit_ended_it(http: httpx.AsyncClient, kind: str, detail: str) -> None:
    assert assert_problem(await http.get(f"/database/{kind}"), 503)["detail"] == detail


async def test_a_bug_is_a_problem_with_the_id_of_its_log_line(http: httpx.AsyncClient) -> None:
    with capture_logs() as logged:
        answer = await http.get("/bug", headers={"X-Request-Id": "r-1"})
    body = assert_problem(answer, 500)
    assert "X-Request-Id" in body["detail"]
    assert "secret-detail" not in answer.text
    assert answer.headers["x-request-id"] == "r-1"
    assert [line["event"] for line in logged] == ["request_failed", "request"]


async def test_request_ids_are_echoed_where_sane_and_made_where_not(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health", headers={"X-Request-Id": "abc-1.2:3_4"})).headers["x-request-id"] == "abc-1.2:3_4"
    made = {
        (await http.get("/health", headers=headers)).headers["x-request-id"]
        for headers in ({}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 129}, {"X-Request-Id": ""})
    }
    assert len(made) == 4
    assert all(len(one) == 36 for one in made)


@pytest.mark.parametrize("length", [str(LIMIT + 1), "9" * 19, "9" * 9000])
async def test_a_body_that_says_it_is_too_long_is_not_read(tmp_path: Path, length: str) -> None:
    read = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/orders",
        "headers": [(b"content-length", length.encode()), (b"x-request-id", b"r-2")],
    }
    await Edge(build(tmp_path), max_body_bytes=LIMIT)(scope, receive, send)
    assert read == 0
    assert sent[0]["status"] == 413
    assert (b"x-request-id", b"r-2") in sent[0]["headers"]


async def test_a_body_of_unknown_length_is_read_up_to_the_limit(http: httpx.AsyncClient) -> None:
    given = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal given
        for _ in range(1000):
            given += 1
            yield b"x" * 100

    answer = await http.post("/orders", content=chunks(), headers={"Content-Type": "application/json"})
    assert str(LIMIT) in assert_problem(answer, 413)["detail"]
    assert given <= LIMIT // 100 + 1


async def test_a_body_at_the_limit_passes(http: httpx.AsyncClient) -> None:
    text = '{"ticker": "IBM"}'.ljust(LIMIT)
    answer = await http.post("/orders", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


async def test_requests_are_counted_by_route_and_not_by_path(http: httpx.AsyncClient) -> None:
    for path in ("/database/away", "/database/refused", "/nowhere/1", "/nowhere/2"):
        await http.get(path)
    lines = (await http.get("/metrics")).text.splitlines()
    counted = {line.split("}")[0] for line in lines if line.startswith("lexi_http_requests_total")}
    assert 'lexi_http_requests_total{route="/database/{kind' in {line.split("}")[0] for line in counted}
    assert 'lexi_http_requests_total{route="unmatched",status="404"' in counted
    assert not any("/nowhere" in line for line in counted)
