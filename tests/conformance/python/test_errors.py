"""What goes wrong is the right exception of the official client, and is tried again only where that makes sense."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)
from openai.types.chat import ChatCompletionMessageParam

from tests.conformance.house import AWAY, WELL, House

pytestmark = pytest.mark.xdist_group("conformance")
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the desk?"}]
WAIT_S = 10.0


def until(true: Callable[[], bool]) -> None:
    """Wait for what happens in another thread."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(client: OpenAI, kind: type[APIStatusError], *, model: str = WELL, **more: Any) -> APIStatusError:
    """The exception that one chat raises."""
    asked: dict[str, Any] = {"model": model, "messages": ASK, **more}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**asked)
    error = caught.value
    assert type(error) is kind
    assert error.request_id
    assert error.message
    assert error.type
    return error


@pytest.mark.parametrize("key", ["wrong", "lexi_" + "x" * 43])
def test_a_wrong_key(client: OpenAI, key: str) -> None:
    error = refused(client.with_options(api_key=key), AuthenticationError)
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "authentication_error")
    with pytest.raises(AuthenticationError):
        client.with_options(api_key=key).models.list()


def test_what_a_key_may_not(client: OpenAI) -> None:
    error = refused(client.with_options(api_key="reader"), PermissionDeniedError)
    assert (error.code, error.type) == ("insufficient_scope", "permission_error")
    error = refused(client.with_options(api_key="narrow"), PermissionDeniedError)
    assert (error.code, error.param) == ("model_not_allowed", "model")


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    error = refused(client, NotFoundError, model="gpt-99")
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    for key in ("full", "narrow"):
        with pytest.raises(NotFoundError) as caught:
            client.with_options(api_key=key).models.retrieve("gpt-99" if key == "full" else WELL)
        assert caught.value.code == "model_not_found"


def test_a_path_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.images.generate(prompt="A chart", model=WELL)
    assert caught.value.code == "route_not_found"


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"n": 3}, "field_refused", "n"),
        ({"extra_body": {"base_url": "http://127.0.0.1:1/"}}, "field_refused", "base_url"),
        ({"extra_body": {"extra_body": {"api_base": "x"}}}, "field_refused", "extra_body.api_base"),
        ({"metadata": {"user_config": "x"}}, "field_refused", "metadata.user_config"),
        ({"extra_body": {"chat_template_kwargs": {}}}, "field_refused", "chat_template_kwargs"),
        ({"messages": []}, "invalid_body", "messages"),
        ({"extra_body": {"messages": "hello"}}, "invalid_body", "messages"),
        ({"max_tokens": 0}, "invalid_body", "max_tokens"),
        ({"model": ""}, "invalid_body", "model"),
        ({"extra_headers": {"X-Deadline-Ms": "soon"}}, "invalid_header", "X-Deadline-Ms"),
    ],
)
def test_a_request_that_is_wrong(client: OpenAI, here: House, more: dict[str, Any], code: str, param: str) -> None:
    before = len(here.engines[WELL].requests)
    error = refused(client, BadRequestError, **more)
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert len(here.engines[WELL].requests) == before


def test_the_content_of_messages_is_not_searched(client: OpenAI, here: House) -> None:
    told: Any = [{"role": "user", "content": [{"type": "text", "text": "base_url", "chat_template": "x"}]}]
    client.chat.completions.create(model=WELL, messages=told)
    assert here.sent()["messages"] == told


def test_a_body_that_is_too_long(client: OpenAI) -> None:
    error = refused(client, APIStatusError, messages=[{"role": "user", "content": "x" * 300_000}])
    assert (error.status_code, error.code) == (413, "body_too_large")


def test_a_limit_of_the_key(client: OpenAI) -> None:
    hasty = client.with_options(api_key="hasty")
    assert hasty.chat.completions.create(model=WELL, messages=ASK).choices
    error = refused(hasty, RateLimitError)
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    told = error.response.headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert 1 <= int(told["retry-after"]) <= 60


def test_a_busy_engine_is_asked_again_when_it_said(
    client: OpenAI, here: House, caplog: pytest.LogCaptureFixture
) -> None:
    busy = here.engines["busy"]
    busy.faults.extend([busy.fault, type(busy.fault).NONE])
    with caplog.at_level(logging.INFO, logger="openai._base_client"):
        patient = client.with_options(max_retries=1).chat.completions.with_raw_response
        raw = patient.create(model="busy", messages=ASK)
    assert raw.retries_taken == 1
    assert "Retrying request in 1.000000 seconds" in caplog.text, "as the engine's Retry-After said"
    error = refused(client, RateLimitError, model="busy")
    assert (error.code, error.response.headers["retry-after"]) == ("upstream_busy", "1")


def test_a_failing_engine(client: OpenAI, here: House) -> None:
    engine = here.engines["failing"]
    error = refused(client, InternalServerError, model="failing")
    assert (error.status_code, error.code, error.type) == (500, "upstream_error", "server_error")
    assert "status 500 on request" in error.message
    before = len(engine.requests)
    refused(client.with_options(max_retries=1), InternalServerError, model="failing")
    assert len(engine.requests) - before == 2, "the client may try again"


def test_an_engine_that_is_away(client: OpenAI) -> None:
    error = refused(client, InternalServerError, model=AWAY)
    assert error.status_code == 503
    assert error.code in {"connect_failed", "upstream_unavailable"}
    assert int(error.response.headers["retry-after"]) >= 1


def test_a_deadline_is_not_tried_again(client: OpenAI, here: House) -> None:
    engine = here.engines["slow"]
    before = len(engine.requests)
    error = refused(
        client.with_options(max_retries=2), InternalServerError, model="slow", extra_headers={"X-Deadline-Ms": "300"}
    )
    assert (error.status_code, error.code) == (504, "deadline_exceeded")
    assert error.response.headers["x-should-retry"] == "false"
    assert len(engine.requests) - before == 1
    until(lambda: engine.active == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_runs_out_of_patience(client: OpenAI, here: House, stream: bool) -> None:
    engine = here.engines["slow"]
    aborted = engine.aborted
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="slow", messages=ASK, stream=stream)
    until(lambda: engine.aborted > aborted and engine.active == 0)


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("cut", "broken_stream", "one two th"),
        ("garbled", "broken_stream", "one two th"),
        ("endless", "broken_stream", "one two three four"),
        ("stalling", "idle_timeout", "one two th"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(client: OpenAI, model: str, code: str, text: str) -> None:
    seen: list[str] = []
    stream = client.chat.completions.create(model=model, messages=ASK, stream=True)
    with stream, pytest.raises(APIError) as caught:
        seen.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert not isinstance(caught.value, APIConnectionError), "the body ended well; the error was told"
    assert (caught.value.code, caught.value.type) == (code, "server_error")
    assert "".join(seen) == text, "what the engine said, and no more"


@pytest.mark.parametrize(("model", "code"), [("cut", "broken_stream"), ("stalling", "idle_timeout")])
def test_a_response_that_breaks_off_is_an_error(client: OpenAI, model: str, code: str) -> None:
    seen: list[str] = []
    stream = client.responses.create(model=model, input="How is the desk?", stream=True)
    with stream, pytest.raises(APIError) as caught:
        seen.extend(event.type for event in stream)
    assert "response.output_text.delta" in seen
    assert "response.completed" not in seen
    assert not isinstance(caught.value, APIConnectionError)
    assert caught.value.code == code
