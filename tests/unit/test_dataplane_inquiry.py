"""What a body may look like, what is refused in it, and what it is estimated to cost."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.dataplane.errors import ApiError
from services.api.dataplane.inquiry import (
    ALSO_SEARCHED,
    DEFAULT_ANSWER_TOKENS,
    DEPTH,
    MEDIA_BYTES,
    REFUSED,
    Endpoint,
    Inquiry,
    read_inquiry,
)

BODIES: dict[Endpoint, dict[str, Any]] = {
    "chat/completions": {"model": "Lexi", "messages": [{"role": "user", "content": "abcdefgh"}]},
    "completions": {"model": "Lexi", "prompt": "abcdefgh"},
    "embeddings": {"model": "Lexi", "input": "abcdefgh"},
    "responses": {"model": "Lexi", "input": "abcdefgh"},
}
ENDPOINTS = st.sampled_from(list(BODIES))
MEDIA_TOKENS = MEDIA_BYTES // 4

NAMES = [
    "model", "messages", "prompt", "input", "stream", "stream_options", "include_usage", "n", "best_of", "max_tokens",
    "max_completion_tokens", "max_output_tokens", "instructions", "suffix", "store", "background", "conversation",
    "previous_response_id", "content", "text", "tools", "tool_calls",
]  # fmt: skip
KNOWN = st.sampled_from([*NAMES, *ALSO_SEARCHED, *sorted(REFUSED)])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KNOWN | st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def inquire(endpoint: Endpoint, fields: dict[str, Any] | None = None, *, choices: int = 4, **more: Any) -> Inquiry:
    """The inquiry of that endpoint's plain body with these fields put into it."""
    body = {**BODIES[endpoint], **(fields or {}), **more}
    return read_inquiry(endpoint, json.dumps(body).encode(), choices=choices)


def refusal(endpoint: Endpoint, fields: dict[str, Any] | None = None, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        inquire(endpoint, fields, **more)
    assert caught.value.status == 400
    return caught.value


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("endpoint", list(BODIES))
def test_a_plain_body_is_read_and_kept_as_it_is(endpoint: Endpoint) -> None:
    inquiry = inquire(endpoint, top_k=40, a_field_of_tomorrow={"x": [1]})
    kept = {**BODIES[endpoint], "top_k": 40, "a_field_of_tomorrow": {"x": [1]}}
    assert inquiry.body == (kept | {"store": False} if endpoint == "responses" else kept)
    assert (inquiry.endpoint, inquiry.model, inquiry.stream, inquiry.wants_usage) == (endpoint, "Lexi", False, False)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"model": NaN}',
        b'{"model": 1e999}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"{} x",
        b'{"a":"\\ud800"}',
        b"[" * 5000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_not_json_is_refused_with_the_place(raw: bytes) -> None:
    with pytest.raises(ApiError, match=r"the body is not JSON: .*char") as caught:
        read_inquiry("chat/completions", raw, choices=4)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("raw", "kind"),
    [(b"[]", "an array"), (b"null", "null"), (b"1", "a number"), (b'"a"', "a string"), (b"true", "a bo")],
)
def test_a_body_that_is_no_object_is_refused(raw: bytes, kind: str) -> None:
    with pytest.raises(ApiError, match=f"must be a JSON object, not {kind}") as caught:
        read_inquiry("completions", raw, choices=4)
    assert caught.value.code == "invalid_body"


def test_of_two_members_with_one_name_the_last_counts() -> None:
    inquiry = read_inquiry("completions", b'{"model":"a","prompt":"x","model":"b"}', choices=4)
    assert inquiry.model == "b"
    assert inquiry.body == {"model": "b", "prompt": "x"}


def test_a_body_as_deep_as_allowed_can_be_written_again_with_room_to_spare() -> None:
    inquiry = inquire("completions", deep=nested(DEPTH - 1), wide=[[]])
    assert b"[" * (DEPTH - 1) in orjson.dumps({"above": {"it": inquiry.body}})
    assert "nests deeper than 240" in refusal("completions", deep=nested(DEPTH)).message


def test_many_brackets_do_not_make_a_body_deep() -> None:
    messages = [{"role": "user", "content": "[[{{"}] * (DEPTH * 2)
    assert len(inquire("chat/completions", messages=messages).body["messages"]) == DEPTH * 2


@pytest.mark.parametrize("model", [None, "", 7, ["Lexi"], "a\x00b", "a\nb", "x" * 257])
def test_the_model_is_a_printable_name(model: object) -> None:
    error = refusal("chat/completions", {"model": model})
    assert (error.code, error.param) == ("invalid_body", "model")


@pytest.mark.parametrize(
    ("endpoint", "name", "value"),
    [
        ("chat/completions", "messages", None),
        ("chat/completions", "messages", []),
        ("chat/completions", "messages", "hello"),
        ("completions", "prompt", None),
        ("completions", "prompt", []),
        ("completions", "prompt", {"text": "a"}),
        ("embeddings", "input", None),
        ("embeddings", "input", []),
        ("responses", "input", None),
        ("responses", "input", []),
        ("responses", "input", 5),
        ("completions", "stream", "true"),
        ("completions", "stream", 1),
        ("chat/completions", "stream_options", True),
        ("chat/completions", "stream_options", []),
        ("chat/completions", "max_tokens", 0),
        ("chat/completions", "max_tokens", True),
        ("chat/completions", "max_completion_tokens", 1.5),
        ("completions", "max_tokens", -1),
        ("responses", "max_output_tokens", "10"),
    ],
)
def test_a_field_of_the_wrong_form_is_named(endpoint: Endpoint, name: str, value: object) -> None:
    error = refusal(endpoint, {name: value})
    assert (error.code, error.param) == ("invalid_body", name)
    assert error.message.startswith(f"{name} must ")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        read_inquiry("chat/completions", b'{"messages": [{}]}', choices=4)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_choices_are_limited(name: str) -> None:
    assert inquire("completions", {name: 8}, choices=8).body[name] == 8
    assert inquire("completions", {name: None}).tokens == 2 + DEFAULT_ANSWER_TOKENS
    for value in (5, 0, -1, True, "2", 2.0):
        error = refusal("completions", {name: value})
        assert (error.code, error.param) == ("field_refused", name)
        assert "from 1 to 4" in error.message


@pytest.mark.parametrize("endpoint", list(BODIES))
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_some_fields_are_refused_at_the_top_and_in_objects_that_servers_unpack(endpoint: Endpoint, name: str) -> None:
    for value in ("x", None, 0):
        error = refusal(endpoint, {name: value})
        assert (error.code, error.param) == ("field_refused", name)
    for outer in ALSO_SEARCHED:
        error = refusal(endpoint, {outer: {"desk": "7", name: "x"}})
        assert (error.code, error.param) == ("field_refused", f"{outer}.{name}")
        assert inquire(endpoint, {outer: {"deeper": {name: "x"}}}).body[outer] == {"deeper": {name: "x"}}


@pytest.mark.parametrize(
    ("name", "value"), [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True)]
)
def test_responses_are_stateless(name: str, value: object) -> None:
    error = refusal("responses", {name: value})
    assert (error.code, error.param) == ("field_refused", name)
    assert inquire("responses", {name: None}).body["store"] is False
    assert inquire("chat/completions", {name: value}).body[name] == value


def test_nothing_of_a_response_is_stored_whatever_the_client_asks() -> None:
    assert inquire("responses", store=True, background=False).body["store"] is False
    assert inquire("chat/completions", store=True).body["store"] is True


def test_streams() -> None:
    assert inquire("chat/completions", stream=True).stream
    assert not inquire("chat/completions", stream=None).stream
    assert inquire("chat/completions", stream=True, stream_options={"include_usage": True}).wants_usage
    assert not inquire("chat/completions", stream=True, stream_options={"include_usage": None}).wants_usage
    assert refusal("completions", stream_options={"include_usage": 1}).param == "stream_options.include_usage"
    assert refusal("embeddings", stream=True).param == "stream"


COSTS: list[tuple[Endpoint, dict[str, Any], int]] = [
    ("chat/completions", {}, 2 + 512),
    ("chat/completions", {"max_tokens": 10, "n": 3}, 2 + 30),
    ("chat/completions", {"max_tokens": 10, "max_completion_tokens": 20}, 2 + 20),
    ("chat/completions", {"max_tokens": 10, "messages": [{"content": "é" * 8}]}, 4 + 10),
    ("chat/completions", {"max_tokens": 10, "messages": [{}]}, 1 + 10),
    ("completions", {"max_tokens": 0, "echo": True}, 2),
    ("completions", {"max_tokens": 10, "prompt": ["abcd", "efgh"], "n": 2}, 2 + 40),
    ("completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 3 + 10),
    ("completions", {"max_tokens": 10, "prompt": [[1, 2], [3]]}, 3 + 20),
    ("completions", {"max_tokens": 10, "n": 2, "best_of": 4}, 2 + 40),
    ("completions", {"max_tokens": 10, "suffix": "abcd"}, 3 + 10),
    ("embeddings", {"max_tokens": 10}, 2),
    ("embeddings", {"input": ["abcd", "efgh", "ijkl"]}, 3),
    ("embeddings", {"input": ""}, 1),
    ("embeddings", {"input": [[1, 2], [3, 4]]}, 4),
    ("responses", {"max_output_tokens": 10, "instructions": "abcdefgh"}, 4 + 10),
    ("responses", {"max_output_tokens": 10, "input": [{"role": "user", "content": "abcd"}]}, 1 + 10),
]


@pytest.mark.parametrize(("endpoint", "fields", "tokens"), COSTS)
def test_the_cost_is_estimated(endpoint: Endpoint, fields: dict[str, Any], tokens: int) -> None:
    assert inquire(endpoint, fields).tokens == tokens


def test_parts_count_their_text_and_media_a_flat_amount() -> None:
    parts: list[Any] = [{"type": "text", "text": "abcdefgh"}, {"type": "image_url", "image_url": {"url": "x" * 90_000}}]
    inquiry = inquire("chat/completions", messages=[{"content": parts}], max_tokens=10)
    assert inquiry.tokens == 2 + MEDIA_TOKENS + 10


def test_tools_and_their_calls_count_as_they_are_written() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 400}}]
    calls = [{"id": "1", "function": {"name": "f", "arguments": "y" * 400}}]
    plain = inquire("chat/completions").tokens
    assert inquire("chat/completions", tools=tools).tokens > plain + 100
    messages = [*BODIES["chat/completions"]["messages"], {"content": None, "tool_calls": calls}]
    assert inquire("chat/completions", messages=messages).tokens > plain + 100
    item = {"type": "function_call_output", "output": "z" * 400}
    assert inquire("responses", input=[item]).tokens > 100 + DEFAULT_ANSWER_TOKENS


@given(ENDPOINTS, st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(endpoint: Endpoint, raw: bytes) -> None:
    try:
        read_inquiry(endpoint, raw, choices=4)
    except ApiError as error:
        assert error.status == 400  # noqa: PT017 - or it is read


@given(ENDPOINTS, st.dictionaries(KNOWN | st.text(max_size=8), VALUES, max_size=6), st.booleans())
def test_any_json_is_read_or_refused(endpoint: Endpoint, fields: dict[str, Any], whole: bool) -> None:
    body = {**BODIES[endpoint], **fields} if whole else fields
    try:
        inquiry = read_inquiry(endpoint, orjson.dumps(body), choices=4)
    except ApiError as error:
        told = orjson.loads(error.body())["error"]
        assert told["message"]
        assert (error.status, told["code"]) in {(400, "invalid_body"), (400, "field_refused")}  # noqa: PT017 - or read
    else:
        assert inquiry.tokens >= 1
        assert orjson.dumps(inquiry.body)
        assert not REFUSED & inquiry.body.keys()
        assert inquiry.body == body | ({"store": False} if endpoint == "responses" else {})


@given(ENDPOINTS, st.sampled_from(sorted(REFUSED)), VALUES)
def test_content_is_never_searched(endpoint: Endpoint, name: str, value: object) -> None:
    inner = {name: value, "metadata": {name: value}, "extra_body": {name: value}}
    fields = {
        "messages": [{"role": "user", "content": [inner], **inner}],
        "prompt": [name],
        "input": [inner],
        "tools": [inner],
        "response_format": inner,
        "structured_outputs": inner,
    }
    body = {"model": "Lexi", **fields}
    inquiry = read_inquiry(endpoint, orjson.dumps(body), choices=4)
    assert {field: inquiry.body[field] for field in fields} == fields


@pytest.mark.parametrize("encoding", ["bytes", "bytes_only", "", 1, ["float"]])
def test_embeddings_come_as_json_in_any_case(encoding: object) -> None:
    refused = refusal("embeddings", encoding_format=encoding)
    assert (refused.status, refused.code, refused.param) == (400, "invalid_body", "encoding_format")
    for known in (None, "float", "base64"):
        assert inquire("embeddings", encoding_format=known).body["encoding_format"] == known
    assert inquire("completions", encoding_format=encoding).tokens, "a field of embeddings alone"
