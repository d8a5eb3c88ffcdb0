"""What goes out in each dialect, and what comes of what comes back."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from libs.upstreams.dialects import body, least_tokens
from libs.upstreams.errors import BrokenStream, Refused
from libs.upstreams.reply import MAX_TEXT_CHARS, Assembly, refusal
from libs.upstreams.roads import retry_seconds
from libs.upstreams.types import ChatRequest, Constraint, Dialect, Message, Priority, Sampling, Usage

SCHEMA = {
    "type": "object",
    "properties": {"allow": {"type": "boolean"}},
    "required": ["allow"],
    "additionalProperties": False,
}
ODD_SCHEMA = {"type": "object", "patternProperties": {"^a": {"type": "string"}}}
MESSAGES = (Message("system", "be brief"), Message("user", "hello"))


def request(constraint: Constraint | None = None, **sampling: Any) -> ChatRequest:
    return ChatRequest(MESSAGES, Sampling(**sampling), constraint, Priority.POLICY)


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp", "openai"])
def test_every_dialect_streams_and_asks_for_usage(dialect: Dialect) -> None:
    content = body(dialect, "Lexi", request(temperature=0.0, top_p=0.5, max_tokens=7, seed=3))
    assert content["stream"] is True
    assert content["stream_options"] == {"include_usage": True}
    assert content["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert (content["model"], content["temperature"], content["top_p"], content["seed"]) == ("Lexi", 0.0, 0.5, 3)
    assert content["max_tokens"] == 7
    assert {"grammar", "structured_outputs", "response_format"}.isdisjoint(content)


def test_vllm_has_priority_and_structured_outputs() -> None:
    assert body("vllm", "m", request())["priority"] == 0
    assert body("vllm", "m", request(Constraint(schema=SCHEMA)))["structured_outputs"] == {"json": SCHEMA}
    chosen = body("vllm", "m", request(Constraint(choice=("OK", "NO"))))
    assert chosen["structured_outputs"] == {"choice": ["OK", "NO"]}


def test_llamacpp_has_a_grammar_and_keeps_the_prompt() -> None:
    content = body("llamacpp", "m", request(Constraint(schema=SCHEMA)))
    assert content["grammar"].startswith("root ::= ")
    assert content["cache_prompt"] is True
    assert "priority" not in content
    assert "structured_outputs" not in content
    assert '"OK" | "NO"' in body("llamacpp", "m", request(Constraint(choice=("OK", "NO"))))["grammar"]


def test_llamacpp_falls_back_to_its_own_translation_for_what_has_no_grammar() -> None:
    content = body("llamacpp", "m", request(Constraint(schema=ODD_SCHEMA)))
    assert "grammar" not in content
    assert content["response_format"]["json_schema"]["schema"] == ODD_SCHEMA


def test_openai_has_a_response_format_and_no_engine_words() -> None:
    content = body("openai", "m", request(Constraint(schema=SCHEMA), max_tokens=9), official=True)
    assert content["response_format"]["json_schema"]["schema"] == SCHEMA
    assert content["max_completion_tokens"] == 9
    assert {"priority", "cache_prompt", "max_tokens"}.isdisjoint(content)
    assert "response_format" not in body("openai", "m", request(Constraint(choice=("OK",))))


def test_the_estimate_is_low() -> None:
    english = "The quick brown fox jumps over the lazy dog. "  # ten tokens in every tokenizer in use
    many = ChatRequest((Message("user", english * 100),), Sampling())
    assert least_tokens(many) <= 1000


def frame(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice], **more}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}\n\n'


def assemble(*chunks: bytes) -> Assembly:
    answer = Assembly()
    for chunk in chunks:
        answer.feed(chunk)
    answer.close()
    return answer


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_begins_an_answer_and_is_no_part_of_it(field: str) -> None:
    answer = Assembly()
    answer.feed(frame({field: "hm"}))
    assert answer.begun
    answer.feed(frame({"content": "a"}, "stop") + DONE)
    assert answer.text == "a"


def test_an_answer_is_put_together() -> None:
    answer = assemble(
        frame({"role": "assistant", "content": None}),
        frame({"content": "a é"}),
        frame({"content": "b"}),
        frame(None, "stop"),
        USAGE,
        DONE,
    )
    assert (answer.text, answer.finish_reason) == ("a éb", "stop")
    assert answer.usage(99) == Usage(tokens_in=12, tokens_out=3)


def test_usage_is_estimated_where_the_engine_does_not_say() -> None:
    answer = assemble(frame({"content": "a"}), frame({"content": "b"}, "length"), DONE)
    assert answer.usage(99) == Usage(tokens_in=99, tokens_out=2, estimated=True)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("counted", [1e300, 4_000_000_000, -1])
def test_usage_beyond_belief_is_estimated(counted: float) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": counted}
    answer = assemble(frame({"content": "a"}, "stop", usage=usage), DONE)
    assert answer.usage(9) == Usage(tokens_in=9, tokens_out=1, estimated=True)


def test_usage_in_every_chunk_counts_once() -> None:
    answer = assemble(
        frame({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        frame(None, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
        DONE,
    )
    assert answer.usage(0) == Usage(tokens_in=5, tokens_out=2)


def test_a_role_without_content_is_no_token() -> None:
    answer = Assembly()
    answer.feed(frame({"role": "assistant", "content": ""}))
    assert not answer.begun
    answer.feed(frame({"content": "x"}))
    assert answer.begun


def test_other_choices_are_left_out() -> None:
    other = b'data: {"choices":[{"index":1,"delta":{"content":"other"},"finish_reason":"stop"}]}\n\n'
    assert assemble(other, frame({"content": "mine"}, "stop"), DONE).text == "mine"


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([], "without a finish reason"),
        ([frame({"content": "a"}), DONE], "without a finish reason"),
        ([frame({"content": "a"}, "stop")], "without \\[DONE\\]"),
        ([frame({"content": "a"}, "abort"), DONE], "gave up"),
        ([b"data: {\n\n"], "not a chat completion chunk"),
        ([b"data: 3\n\n"], "not a chat completion chunk"),
        ([b'data: "x"\n\n'], "not a chat completion chunk"),
        ([b"data: {}\n\n"], "not a chat completion chunk"),
        ([b'data: {"choices":3}\n\n'], "not a chat completion chunk"),
        ([b'data: {"choices":[3]}\n\n'], "not a chat completion chunk"),
        ([frame({"content": 3})], "not a chat completion chunk"),
        ([frame({"content": "a"}, usage={"prompt_tokens": "x"})], "not a chat completion chunk"),
        ([b"data: \xff\xfe\n\n"], "not a chat completion chunk"),
        ([b'data: {"error":{"message":"it died","code":500}}\n\n'], "it died"),
        ([b'data: {"error":"plain words"}\n\n'], "plain words"),
        ([frame({"content": "x" * 500_000})] * (MAX_TEXT_CHARS // 500_000 + 1), "longer than"),
    ],
)
def test_what_is_not_whole_is_broken(chunks: list[bytes], said: str) -> None:
    with pytest.raises(BrokenStream, match=said):
        assemble(*chunks)


def test_a_client_error_inside_the_stream_is_a_refusal() -> None:
    with pytest.raises(Refused, match="bad grammar") as caught:
        assemble(b'data: {"error":{"message":"bad grammar","code":400}}\n\n')
    assert (caught.value.status, caught.value.retryable) == (400, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error":{"message":"too  long\\nhere","code":400}}', "too long here"),
        (b'{"object":"error","message":"flat"}', "flat"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":"words"}', "words"),
        (b"<html>bad gateway</html>", "<html>bad gateway</html>"),
        (b"[1]", ""),
        (b"", ""),
        (b"\xff" * 500, "\ufffd" * 200),
    ],
)
def test_refusals_of_every_shape_are_read(content: bytes, said: str) -> None:
    assert refusal(content) == said


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_seconds(b" 7 ", now) == 7
    assert retry_seconds(b"Thu, 01 Jan 2026 12:00:30 GMT", now) == 30
    assert retry_seconds(b"Thu, 01 Jan 2026 11:00:00 GMT", now) == 0
    assert retry_seconds(b"soon", now) is None
    assert retry_seconds(b"-1", now) is None
    assert retry_seconds(b"Mon, 01 Jan 2024 00:00:00 +99999999999999999", now) is None
    assert retry_seconds(None, now) is None
