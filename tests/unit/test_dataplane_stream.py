"""What passes of a stream, and what its end is called."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.upstreams.errors import BrokenStream, Refused
from libs.upstreams.sse import MAX_EVENT_BYTES
from libs.upstreams.types import Usage
from services.api.dataplane.stream import ChoiceEvents, EventStream, ResponseEvents

DONE = b"data: [DONE]\n\n"


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def chunk(text: str | None = None, *, finish: str | None = None, index: int = 0, **delta: Any) -> bytes:
    content = {} if text is None else {"content": text}
    return event({"choices": [{"index": index, "delta": {**content, **delta}, "finish_reason": finish}]})


def usage(tokens_in: int = 7, tokens_out: int = 2) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


WHOLE = [chunk("", role="assistant"), chunk("a\u00e9"), chunk("b"), chunk(finish="stop"), usage(), DONE]


def choices(*, wants_usage: bool = True, expected: int = 1) -> ChoiceEvents:
    return ChoiceEvents(choices=expected, wants_usage=wants_usage, keep_text=True)


def feed_all(events: EventStream, pieces: list[bytes]) -> bytes:
    """What passes of pieces of a body that then ends."""
    passed = b""
    for piece in pieces:
        if events.error is None:
            passed += events.feed(piece)
    if events.error is None:
        events.ended()
    return passed


def test_a_whole_stream_passes_unchanged() -> None:
    events = choices()
    assert feed_all(events, WHOLE) == b"".join(WHOLE)
    assert events.done
    assert events.error is None
    assert (events.text, events.finish_reason, events.pieces) == ("aéb", "stop", 2)
    assert events.usage == Usage(7, 2)


@given(st.lists(st.integers(min_value=1, max_value=40)), st.booleans())
def test_how_the_bytes_are_split_makes_no_difference(sizes: list[int], returns: bool) -> None:
    body = b"".join(WHOLE)
    sent = body.replace(b"\n", b"\r\n") if returns else body
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(sent[:size])
        sent = sent[size:]
    events = choices()
    assert feed_all(events, [*pieces, sent]) == body
    assert events.done
    assert events.error is None


@given(st.integers(min_value=0, max_value=len(b"".join(WHOLE)) - 1))
def test_a_stream_cut_anywhere_is_an_error_and_never_done(at: int) -> None:
    body = b"".join(WHOLE)
    events = choices()
    passed = feed_all(events, [body[:at]])
    assert isinstance(events.error, BrokenStream)
    assert not events.done
    assert b"[DONE]" not in passed
    assert body.startswith(passed)
    assert passed == b"" or passed.endswith(b"\n\n"), "half an event passed"


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(noise: bytes) -> None:
    for events in (choices(), ResponseEvents()):
        passed = feed_all(events, [noise, b"\n\n"])
        assert events.done or events.error is not None
        assert len(passed) <= len(noise) + 2


FIELDS = ["choices", "usage", "error", "index", "delta", "content", "finish_reason", "type", "response", "text"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON)
def test_no_event_makes_the_reader_raise(document: Any) -> None:
    for events in (choices(), ResponseEvents()):
        feed_all(events, [b"data: " + orjson.dumps(document) + b"\n\n"])
        assert events.done or events.error is not None


def test_usage_goes_only_to_those_who_asked() -> None:
    events = choices(wants_usage=False)
    assert feed_all(events, WHOLE) == b"".join(WHOLE[:4] + WHOLE[5:])
    assert events.usage == Usage(7, 2)


def test_a_second_finish_is_passed_over() -> None:
    twice = [chunk("a"), chunk(finish="stop"), chunk(finish="stop"), DONE]
    events = choices()
    assert feed_all(events, twice) == b"".join([twice[0], twice[1], DONE])
    assert events.done


def test_every_choice_must_finish() -> None:
    one_of_two = [chunk("a"), chunk("b", index=1), chunk(finish="stop"), DONE]
    events = choices(expected=2)
    assert DONE not in feed_all(events, one_of_two)
    assert isinstance(events.error, BrokenStream)
    both = [*one_of_two[:3], chunk(finish="length", index=1), DONE]
    events = choices(expected=2)
    assert feed_all(events, both) == b"".join(both)
    assert events.finish_reason == "length,stop"


@pytest.mark.parametrize(
    ("missing", "why"),
    [(3, "without a finish reason"), (5, "without [DONE]")],
)
def test_what_is_missing_is_named(missing: int, why: str) -> None:
    events = choices()
    feed_all(events, WHOLE[:missing] + WHOLE[missing + 1 :])
    assert why in str(events.error)
    assert not events.done


def test_an_error_of_the_engine_ends_the_stream() -> None:
    events = choices()
    passed = feed_all(events, [WHOLE[0], event({"error": {"message": "EngineCore died", "code": 500}}), DONE])
    assert passed == WHOLE[0]
    assert isinstance(events.error, BrokenStream)
    assert "EngineCore died" in str(events.error)
    refused = choices()
    feed_all(refused, [event({"error": {"message": "too long", "code": 400}})])
    assert isinstance(refused.error, Refused)


def test_an_engine_that_gave_up_did_not_answer() -> None:
    events = choices()
    feed_all(events, [chunk("a"), chunk(finish="abort"), DONE])
    assert isinstance(events.error, BrokenStream)
    assert not events.done


def test_comments_do_not_pass() -> None:
    events = choices()
    assert events.feed(b": ping\n\n") == b""
    assert events.feed(b": ping\n" + WHOLE[1]) == b": ping\n" + WHOLE[1], "what rides on an event stays with it"


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    events = choices()
    for _ in range(MAX_EVENT_BYTES // 65536 + 1):
        events.feed(b"x" * 65536)
    assert isinstance(events.error, BrokenStream)


def test_completions_carry_text() -> None:
    body = [event({"choices": [{"index": 0, "text": "ab", "finish_reason": None}]})]
    body += [event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}), DONE]
    events = choices()
    assert feed_all(events, body) == b"".join(body)
    assert (events.text, events.finish_reason, events.pieces) == ("ab", "length", 1)


def named(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **more})


RESPONSE = [
    named("response.created", sequence_number=0, response={"status": "in_progress"}),
    named("response.output_text.delta", sequence_number=1, delta="OK"),
    named(
        "response.completed",
        sequence_number=2,
        response={"status": "completed", "usage": {"input_tokens": 5, "output_tokens": 1}},
    ),
]


def test_a_response_ends_with_its_last_event() -> None:
    events = ResponseEvents(keep_text=True)
    assert feed_all(events, RESPONSE) == b"".join(RESPONSE)
    assert events.done
    assert (events.text, events.finish_reason, events.usage) == ("OK", "completed", Usage(5, 1))


def test_a_response_that_breaks_off_says_so_in_its_own_words() -> None:
    events = ResponseEvents()
    assert feed_all(events, RESPONSE[:2]) == b"".join(RESPONSE[:2])
    assert isinstance(events.error, BrokenStream)
    told = events.error_event({"message": "cut", "type": "server_error", "param": None, "code": "broken_stream"})
    name, data = told.strip().split(b"\n")
    document = orjson.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert (document["type"], document["sequence_number"], document["code"]) == ("error", 2, "broken_stream")
    assert document["error"]["message"] == "cut"
