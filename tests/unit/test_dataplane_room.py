"""Which prompts are refused unsent since no window of the place holds them, and which are left to the engine."""

import json
from time import monotonic
from typing import Any

import pytest

from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import PromptTooLong
from libs.upstreams.upstream import Upstream
from services.api.dataplane.inquiry import Endpoint, read_inquiry
from services.api.dataplane.room import least_tokens, refuse_what_cannot_fit

LONG = "x" * 600
CHAT: Endpoint = "chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def place(context: int | None) -> Upstream:
    entry = UpstreamEntry("lexi", "Lexi", "http://127.0.0.1:9/v1", "vllm", 4, {"api": 4}, context)
    return Upstream(entry, "api", monotonic)


def check(endpoint: Endpoint, context: int | None, **fields: Any) -> None:
    body = json.dumps({"model": "Lexi", **fields}).encode()
    refuse_what_cannot_fit(read_inquiry(endpoint, body, choices=4), place(context))


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}, IMAGE]}]}),
        ("completions", {"prompt": LONG}),
        ("completions", {"prompt": ["a", LONG]}),
        ("completions", {"prompt": [1] * 120}),
        ("embeddings", {"input": ["a", LONG]}),
        ("embeddings", {"input": [[1] * 120, [1]]}),
        ("responses", {"input": LONG}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": LONG}]}]}),
        ("responses", {"input": "a", "instructions": LONG}),
    ],
)
def test_a_prompt_that_no_window_holds_is_refused(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    with pytest.raises(PromptTooLong, match="at least 120 tokens, the context length is 119") as caught:
        check(endpoint, 119, **fields)
    assert caught.value.upstream == "lexi"
    check(endpoint, 120, **fields)
    check(endpoint, None, **fields)


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [IMAGE] * 9}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [{"description": LONG}]}),
        (CHAT, {"messages": [{"role": "user", "content": LONG}], "truncate_prompt_tokens": 10}),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 10**9}),
        ("completions", {"prompt": ["x" * 100] * 50}),
        ("embeddings", {"input": ["x" * 100] * 50}),
        ("responses", {"input": LONG, "truncation": "auto"}),
    ],
)
def test_what_may_fit_is_left_to_the_engine(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    check(endpoint, 100, **fields)


def test_the_fewest_tokens_are_fewer_than_the_estimate() -> None:
    inquiry = read_inquiry(CHAT, json.dumps({"model": "m", "messages": [{"content": LONG}]}).encode(), choices=1)
    assert least_tokens(inquiry) < inquiry.prompt_tokens
