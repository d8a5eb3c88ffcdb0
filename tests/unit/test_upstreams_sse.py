"""The event stream parser gives the same events however the bytes are split."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from libs.upstreams.sse import MAX_EVENT_BYTES, SseOverflow, SseParser

LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data:  c", b"data", b"data:", b": ping", b":", b"event: x", b"id: 1", b"retry: 5", b"",
     b"", 'data: {"ü": "é\u2028"}'.encode(), b"data: [DONE]", b"datax: no", b" data: no", b"data: a:b"]
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=25).map(lambda pairs: b"".join(line + end for line, end in pairs))


def by_the_standard(content: bytes) -> list[bytes]:
    """The events of a whole stream, read the plain way."""
    events: list[bytes] = []
    data: list[bytes] = []
    lines = re.split(rb"\r\n|\n|\r", content.removeprefix(b"\xef\xbb\xbf"))
    for line in lines[:-1]:
        if line == b"":
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line == b"data":
            data.append(b"")
        elif line.startswith(b"data:"):
            value = line[5:]
            data.append(value[1:] if value[:1] == b" " else value)
    return events


@given(STREAMS, st.lists(st.integers(0, 400), max_size=12), st.booleans())
@example(b"data: a\r\n\r\ndata: b\n\n", [9, 10], False)
@example(b"data: a\n\n", [1, 2], True)
def test_any_split_gives_the_events_of_the_whole(stream: bytes, cuts: list[int], marked: bool) -> None:
    content = b"\xef\xbb\xbf" + stream if marked else stream
    parser, events, start = SseParser(), list[bytes](), 0
    for cut in [*sorted(cuts), len(content)]:
        events += parser.feed(content[start : max(start, cut)])
        start = max(start, cut)
    assert events == by_the_standard(content)


@given(STREAMS)
def test_byte_by_byte_gives_the_events_of_the_whole(stream: bytes) -> None:
    parser = SseParser()
    events = [event for byte in stream for event in parser.feed(bytes([byte]))]
    assert events == by_the_standard(stream)


def test_an_event_without_its_blank_line_is_pending_and_not_given() -> None:
    parser = SseParser()
    assert parser.feed(b"data: whole\n\ndata: half\n") == [b"whole"]
    assert parser.pending


def test_an_event_that_never_ends_is_refused() -> None:
    parser = SseParser()
    parser.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(SseOverflow):
        parser.feed(b"x")


def test_many_lines_of_one_event_count_together() -> None:
    parser = SseParser()
    parser.feed(b"data: " + b"x" * (MAX_EVENT_BYTES // 2) + b"\n")
    with pytest.raises(SseOverflow):
        parser.feed(b"data: " + b"x" * (MAX_EVENT_BYTES // 2) + b"\n")
