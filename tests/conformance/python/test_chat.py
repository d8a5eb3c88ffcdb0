"""Chat through the official client: whole and streamed, tools, constraints, log probabilities, own fields."""

import json
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.conformance.conftest import TEXT
from tests.conformance.house import SLASHED, WELL, House

pytestmark = pytest.mark.xdist_group("conformance")
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the desk?"}]
PRICE: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "price",
        "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}}, "required": ["ticker"]},
        "strict": True,
    },
}


class Verdict(BaseModel):
    """What a model is asked to fill in."""

    allow: bool
    reason: str


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def finishes(chunks: list[ChatCompletionChunk]) -> dict[int, list[str]]:
    """The finish reasons of each choice of a stream."""
    found: dict[int, list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        found.setdefault(choice.index, []).extend([choice.finish_reason] if choice.finish_reason else [])
    return found


def test_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, max_tokens=32)
    assert answer.object == "chat.completion"
    assert answer.model == WELL
    assert [choice.message.content for choice in answer.choices] == [TEXT]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len(TEXT.split())


def test_a_model_with_a_slash_in_its_name(client: OpenAI, here: House) -> None:
    assert client.chat.completions.create(model=SLASHED, messages=ASK).model == SLASHED
    assert here.sent(SLASHED)["model"] == SLASHED


def test_a_stream(client: OpenAI) -> None:
    with client.chat.completions.create(model=WELL, messages=ASK, stream=True) as stream:
        chunks = list(stream)
    assert text_of(chunks) == TEXT
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 1
    assert finishes(chunks) == {0: ["stop"]}
    assert all(chunk.choices for chunk in chunks), "nobody asked for the event that counts tokens"


def test_a_stream_counts_tokens_where_asked(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=WELL, messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *pieces, last = stream
    assert all(chunk.choices and chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(TEXT.split())


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=WELL, messages=ASK) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert "".join(event.delta for event in events if event.type == "content.delta") == TEXT
    assert [event.content for event in events if event.type == "content.done"] == [TEXT]
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].finish_reason == "stop"


def test_the_raw_answer_and_its_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=WELL, messages=ASK, extra_headers={"X-Request-Id": "desk-7.f:3_a"}
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id == raw.headers["x-request-id"] == "desk-7.f:3_a"
    assert raw.headers["x-lexi-upstream"] == "lexi"
    assert raw.headers["x-lexi-cache"] == "bypass"
    assert "upstream;dur=" in raw.headers["server-timing"]
    assert raw.parse().choices[0].message.content == TEXT


def test_the_raw_stream_ends_with_done(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model=WELL, messages=ASK, stream=True) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.headers["x-lexi-upstream"] == "lexi"
        lines = [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


@pytest.mark.parametrize("streamed", [False, True])
def test_two_choices(client: OpenAI, streamed: bool) -> None:
    if streamed:
        with client.chat.completions.create(model=WELL, messages=ASK, n=2, stream=True) as stream:
            chunks = list(stream)
        assert finishes(chunks) == {0: ["stop"], 1: ["stop"]}
        assert [text_of(chunks, index) for index in range(2)] == [TEXT, TEXT]
    else:
        answer = client.chat.completions.create(model=WELL, messages=ASK, n=2)
        assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, TEXT), (1, TEXT)]


def test_a_tool_is_called(client: OpenAI, here: House) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, tools=[PRICE], tool_choice="auto")
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("price", {"ticker": "AAPL"})
    assert here.sent()["tools"] == [PRICE]
    assert here.sent()["tool_choice"] == "auto"


def test_a_tool_is_called_in_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=WELL, messages=ASK, tools=[PRICE]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert (done.name, json.loads(done.arguments)) == ("price", {"ticker": "AAPL"})
    assert len([event for event in events if event.type == "tool_calls.function.arguments.delta"]) > 1
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == {"ticker": "AAPL"}


def test_the_answer_of_a_tool_goes_back(client: OpenAI, here: House) -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "price", "arguments": '{"ticker":"AAPL"}'}}
    told: list[Any] = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "544.47"},
    ]
    assert client.chat.completions.create(model=WELL, messages=told).choices[0].message.content == TEXT
    assert here.sent()["messages"] == told


def test_log_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content
    assert [token.token for token in answer.choices[0].logprobs.content] == TEXT.split()
    assert all(token.logprob < 0 and len(token.top_logprobs) == 2 for token in answer.choices[0].logprobs.content)
    with client.chat.completions.stream(model=WELL, messages=ASK, logprobs=True) as stream:
        whole = [event for event in stream if event.type == "logprobs.content.done"]
    assert len(whole) == 1
    assert whole[0].content


def test_an_answer_is_parsed_into_a_class(client: OpenAI, here: House) -> None:
    answer = client.chat.completions.parse(model=WELL, messages=ASK, response_format=Verdict)
    assert answer.choices[0].message.parsed == Verdict(allow=True, reason=TEXT)
    assert here.sent()["response_format"]["json_schema"]["name"] == "Verdict"
    with client.chat.completions.stream(model=WELL, messages=ASK, response_format=Verdict) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Verdict(allow=True, reason=TEXT)


def test_the_fields_of_the_engine_arrive_unchanged(client: OpenAI, here: House) -> None:
    own = {
        "structured_outputs": {"choice": ["OK", "NO"]},
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "stop_token_ids": [2, 32000],
        "ignore_eos": False,
        "logit_bias": {"50256": -100},
        "a_field_of_tomorrow": {"deep": [1, 2.5, None, "é"]},
    }
    answer = client.chat.completions.create(
        model=WELL, messages=ASK, seed=7, temperature=0.25, stop=["\n", "END"], extra_body=own
    )
    assert answer.choices[0].message.content == "OK"
    assert answer.system_fingerprint == "seed-7"
    sent = here.sent()
    assert {name: sent[name] for name in own} == own
    assert (sent["seed"], sent["temperature"], sent["stop"]) == (7, 0.25, ["\n", "END"])
    assert sent["messages"] == ASK


def test_older_names_of_a_constraint_are_translated(client: OpenAI, here: House) -> None:
    answer = client.chat.completions.create(model=WELL, messages=ASK, extra_body={"guided_choice": ["NO", "OK"]})
    assert answer.choices[0].message.content == "NO"
    assert here.sent()["structured_outputs"] == {"choice": ["NO", "OK"]}
    assert "guided_choice" not in here.sent()


def test_a_client_cannot_steer_the_engine(client: OpenAI, here: House) -> None:
    own = {"X-Vllm-Priority": "-9", "X-Session-ID": "mine", "X-data-parallel-rank": "1"}
    client.chat.completions.create(model=WELL, messages=ASK, extra_body={"priority": -9}, extra_headers=own)
    assert here.sent()["priority"] >= 0
    arrived = here.engines[WELL].headers[-1]
    assert not [name for name in arrived if name.lower() in {known.lower() for known in own}]
    assert "full" not in str(arrived), "the caller's key stays here"


def test_an_answer_comes_from_the_cache_where_asked(client: OpenAI, here: House) -> None:
    told: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What was said before?"}]
    before = len(here.engines[WELL].requests)
    seen = [
        client.chat.completions.with_raw_response.create(
            model=WELL, messages=told, temperature=0, extra_headers={"X-Lexi-Cache": word}
        )
        for word in ("on", "on", "off")
    ]
    assert [raw.headers["x-lexi-cache"] for raw in seen] == ["miss", "hit", "bypass"]
    assert [raw.parse().choices[0].message.content for raw in seen] == [TEXT] * 3
    assert len(here.engines[WELL].requests) - before == 2


def test_a_stream_comes_from_the_cache_as_a_stream(client: OpenAI) -> None:
    told: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What was streamed before?"}]
    for state in ("miss", "hit"):
        with client.chat.completions.with_streaming_response.create(
            model=WELL, messages=told, temperature=0, stream=True, extra_headers={"X-Lexi-Cache": "on"}
        ) as raw:
            assert raw.headers["x-lexi-cache"] == state
            chunks = list(raw.parse())
        assert text_of(chunks) == TEXT
        assert finishes(chunks) == {0: ["stop"]}


def test_what_may_vary_is_not_cached(client: OpenAI) -> None:
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(
            model=WELL, messages=ASK, temperature=0.1, extra_headers={"X-Lexi-Cache": "on"}
        )
        assert raw.headers["x-lexi-cache"] == "bypass"
