"""What a client of `/v1` is told, by what went wrong."""

import orjson
import pytest

from libs.upstreams.errors import (
    BreakerOpen,
    BrokenStream,
    ConnectFailed,
    DeadlineExceeded,
    FirstTokenTimeout,
    IdleTimeout,
    NoSlot,
    NotRecorded,
    PromptTooLong,
    QueueFull,
    Refused,
    UpstreamError,
)
from services.api.dataplane.answer import BadAnswer, read_answer
from services.api.dataplane.errors import ApiError, from_upstream
from services.api.dataplane.inquiry import Endpoint


def refused(status: int, document: object = None, *, retry_after_s: float | None = None) -> Refused:
    content = b"" if document is None else orjson.dumps(document)
    return Refused(f"answered {status}", status=status, retry_after_s=retry_after_s, content=content)


def timed_out_connecting() -> ConnectFailed:
    error = ConnectFailed("no connection within 2 s")
    error.__cause__ = TimeoutError()
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull("full", retry_after_s=3.2), 503, "overloaded"),
        (BreakerOpen("resting", retry_after_s=4.5), 503, "upstream_unavailable"),
        (ConnectFailed("refused"), 503, "connect_failed"),
        (timed_out_connecting(), 504, "connect_timeout"),
        (NoSlot("none free"), 504, "deadline_exceeded"),
        (FirstTokenTimeout("silent"), 504, "first_byte_timeout"),
        (IdleTimeout("silent"), 504, "idle_timeout"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
        (BrokenStream("cut"), 502, "broken_stream"),
        (BadAnswer("no JSON"), 502, "bad_upstream_answer"),
        (PromptTooLong("long"), 400, "context_length_exceeded"),
        (NotRecorded("none"), 502, "upstream_error"),
        (refused(401), 502, "upstream_refused_key"),
        (refused(403), 502, "upstream_refused_key"),
        (refused(302), 502, "bad_upstream_answer"),
        (refused(404, {"error": {"message": "no such model"}}), 404, "upstream_error"),
        (refused(429), 429, "upstream_busy"),
        (refused(500), 500, "upstream_error"),
        (refused(503), 503, "upstream_error"),
        (refused(507), 502, "upstream_error"),
    ],
)
def test_every_failure_has_a_status_and_a_code(error: UpstreamError, status: int, code: str) -> None:
    told = from_upstream(error)
    assert (told.status, told.code) == (status, code)
    document = orjson.loads(told.body())["error"]
    assert set(document) == {"message", "type", "param", "code"}
    assert document["message"]


def test_when_to_come_again_is_said_in_whole_seconds() -> None:
    assert from_upstream(QueueFull("full", retry_after_s=3.2)).headers == {"Retry-After": "4"}
    assert from_upstream(BreakerOpen("resting", retry_after_s=0.2)).headers == {"Retry-After": "1"}
    assert from_upstream(refused(429, retry_after_s=7)).headers == {"Retry-After": "7"}
    assert from_upstream(refused(429)).headers == {"Retry-After": "2"}
    assert from_upstream(refused(500)).headers == {}


def test_a_request_that_ran_out_of_time_is_not_to_be_repeated_at_once() -> None:
    assert from_upstream(DeadlineExceeded("late")).headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "at most 8 stop words", "type": "BadRequestError", "param": "stop", "code": 400}},
        {"object": "error", "message": "at most 8 stop words", "param": "stop", "code": 400},
    ],
)
def test_what_the_caller_can_mend_passes_in_the_engines_words(document: object) -> None:
    told = from_upstream(refused(400, document))
    assert (told.status, told.message, told.param) == (400, "at most 8 stop words", "stop")
    assert told.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_told_by_openais_code() -> None:
    message = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
    assert from_upstream(refused(400, {"error": {"message": message, "code": 400}})).code == "context_length_exceeded"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"null", b'{"error": null}', b'{"error": "boom"}'])
def test_a_refusal_of_any_shape_can_be_told(content: bytes) -> None:
    told = from_upstream(Refused("answered 400: boom", status=400, content=content))
    assert told.status == 400
    assert told.message


def test_the_type_follows_from_the_status() -> None:
    kinds = {status: ApiError(status, "x", "y").type for status in (400, 401, 403, 404, 429, 500, 504)}
    assert kinds[401] == "authentication_error"
    assert kinds[403] == "permission_error"
    assert kinds[429] == "rate_limit_error"
    assert kinds[400] == kinds[404] == "invalid_request_error"
    assert kinds[500] == kinds[504] == "server_error"


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("chat/completions", {"choices": []}),
        ("chat/completions", {"choices": [{"message": {"content": "a"}}]}),
        ("chat/completions", {"choices": [{"message": {"content": "a"}, "finish_reason": None}]}),
        ("chat/completions", {"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}),
        ("chat/completions", {"error": {"message": "died"}}),
        ("completions", {"data": []}),
        ("embeddings", {"data": {}}),
        ("responses", {"status": "completed"}),
        ("responses", [1]),
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(endpoint: Endpoint, answer: object) -> None:
    with pytest.raises(BadAnswer):
        read_answer(endpoint, orjson.dumps(answer), keep_text=True)


def test_a_whole_answer_says_what_it_took_and_why_it_ended() -> None:
    choice = {"index": 0, "message": {"content": "OK"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    gist = read_answer("chat/completions", orjson.dumps({"choices": [choice], "usage": usage}), keep_text=True)
    assert gist.usage is not None
    assert (gist.text, gist.finish_reason, gist.usage.tokens_in, gist.usage.tokens_out) == ("OK", "stop", 3, 1)
    two = [choice, choice | {"index": 1, "finish_reason": "length"}]
    assert (
        read_answer("chat/completions", orjson.dumps({"choices": two}), keep_text=False).finish_reason == "length,stop"
    )
    called = {"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}
    assert "tool_calls" in read_answer("chat/completions", orjson.dumps({"choices": [called]}), keep_text=True).text
