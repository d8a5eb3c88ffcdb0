"""The metrics and the row of each request under `/v1`."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY as METRICS

from libs.llm.call_record import BodyRow, CallRow, new_call_id, time_of
from libs.llm.calls import Recorder
from libs.upstreams.types import TimeSplit, Usage
from services.api.dataplane import accounting
from services.api.dataplane.accounting import Accounts, Finished

QUOTED = "upstream_error: your prompt 'sell everything' is bad"


class Kept(Recorder):
    """A recorder that only remembers."""

    def __init__(self) -> None:
        self.service = "api"
        self.calls: list[CallRow] = []
        self.bodies: list[BodyRow | None] = []

    def keep(self, call: CallRow, body: BodyRow | None = None) -> None:
        self.calls.append(call)
        self.bodies.append(body)


@pytest.fixture
def recorder() -> Kept:
    return Kept()


@pytest.fixture
def accounts(recorder: Kept) -> Accounts:
    return Accounts(recorder, models=lambda: ("Lexi", "Phi"))


def finished(**changed: Any) -> Finished:
    base: dict[str, Any] = {
        "request_id": "req-1",
        "caller": "desk",
        "endpoint": "chat/completions",
        "asked_model": "Lexi",
        "stream": False,
        "http_status": 200,
        "status": "ok",
        "error": None,
        "upstream": "lexi",
        "model": "Lexi",
        "attempts": 1,
        "cached": False,
        "finish_reason": "stop",
        "usage": Usage(100, 51),
        "time": TimeSplit(queue_ms=100, connect_ms=2, first_token_ms=500, total_ms=1500),
        "overhead_s": 0.002,
        "body": None,
        "reply": "",
    }
    return Finished(**{**base, **changed})


def samples(name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in METRICS.collect():
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def total(name: str, **labels: str) -> float:
    """The sum over the series that carry these labels."""
    return sum(value for carried, value in samples(name) if labels.items() <= carried.items())


class Change:
    """What metrics gained since this was made."""

    def __init__(self) -> None:
        self._before = self._read()

    def _read(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in METRICS.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def of(self, name: str, **labels: str) -> float:
        gained = 0.0
        for series, value in self._read().items():
            if series[0] == name and labels.items() <= dict(series[1]).items():
                gained += value - self._before.get(series, 0.0)
        return round(gained, 9)


def test_a_streamed_answer_is_counted_under_the_conventions_names(accounts: Accounts) -> None:
    change = Change()
    accounts.close(finished(stream=True))
    call = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "Lexi", "gen_ai_response_model": "Lexi"}
    assert change.of("gen_ai_server_request_duration_seconds_sum", **call, error_type="") == 1.5
    assert change.of("gen_ai_server_time_to_first_token_seconds_sum", **call) == 0.5
    assert change.of("gen_ai_server_time_per_output_token_seconds_sum", **call) == 0.02
    assert change.of("gen_ai_client_operation_duration_seconds_sum", **call, error_type="") == 1.398
    assert change.of("gen_ai_client_token_usage_sum", **call, gen_ai_token_type="input") == 100
    assert change.of("gen_ai_client_token_usage_sum", **call, gen_ai_token_type="output") == 51
    assert change.of("lexi_gateway_overhead_seconds_sum", endpoint="chat/completions") == 0.002
    request = {"endpoint": "chat/completions", "caller": "desk", "status_code": "200", "outcome": "ok", "cached": "no"}
    assert change.of("lexi_gateway_requests_total", **request) == 1
    assert change.of("lexi_gateway_tokens_total", caller="desk", direction="out") == 51


def test_only_streams_have_a_first_token(accounts: Accounts) -> None:
    change = Change()
    accounts.close(finished())
    accounts.close(finished(stream=True, usage=Usage(5, 1)))
    assert change.of("gen_ai_server_request_duration_seconds_count") == 2
    assert change.of("gen_ai_server_time_to_first_token_seconds_count") == 1
    assert change.of("gen_ai_server_time_per_output_token_seconds_count") == 0


def test_an_answer_from_the_cache_is_a_request_and_no_work_of_an_engine(accounts: Accounts, recorder: Kept) -> None:
    change = Change()
    accounts.close(finished(cached=True, attempts=0, stream=True))
    assert change.of("lexi_gateway_requests_total", cached="yes") == 1
    for name in ("server_request_duration_seconds", "client_operation_duration_seconds", "client_token_usage"):
        assert change.of(f"gen_ai_{name}_count") == 0
    assert change.of("lexi_gateway_tokens_total") == 0
    [row] = recorder.calls
    assert (row.cached, row.success, row.tokens_in, row.tokens_out) == (True, True, 0, 0)


def test_a_broken_stream_counts_as_failed_and_its_tokens_as_estimated(accounts: Accounts, recorder: Kept) -> None:
    change = Change()
    accounts.close(
        finished(stream=True, status="failed", error="broken_stream: cut after 3 events", usage=Usage(7, 3, True))
    )
    assert change.of("lexi_gateway_requests_total", status_code="200", outcome="failed") == 1
    assert change.of("gen_ai_server_request_duration_seconds_count", error_type="broken_stream") == 1
    assert change.of("gen_ai_server_time_to_first_token_seconds_count") == 0
    assert change.of("gen_ai_client_token_usage_count") == 0
    assert change.of("lexi_gateway_tokens_total", direction="out") == 3
    [row] = recorder.calls
    assert (row.success, row.status, row.http_status, row.tokens_out) == (False, "failed", 200, 3)
    assert row.error == "broken_stream: cut after 3 events"


def test_unknown_models_and_errors_make_no_series_of_their_own(accounts: Accounts) -> None:
    accounts.close(finished(asked_model="m0", model="", status="failed", http_status=404, error="odd0: x", attempts=0))
    before = len(list(samples("gen_ai_server_request_duration_seconds_count")))
    for number in range(50):
        accounts.close(
            finished(
                asked_model=f"m{number}",
                model="",
                status="failed",
                http_status=404,
                error=f"odd{number}: x",
                attempts=0,
            )
        )
    assert len(list(samples("gen_ai_server_request_duration_seconds_count"))) == before
    labels = {"gen_ai_request_model": "_OTHER", "error_type": "404"}
    assert total("gen_ai_server_request_duration_seconds_count", **labels) >= 51


def test_a_fallback_shows_which_model_was_asked_for_and_which_answered(accounts: Accounts) -> None:
    change = Change()
    accounts.close(finished(model="Phi", attempts=2))
    labels = {"gen_ai_request_model": "Lexi", "gen_ai_response_model": "Phi"}
    assert change.of("gen_ai_client_operation_duration_seconds_count", **labels) == 1


def test_callers_beyond_a_bound_share_a_series(recorder: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MOST_CALLERS", 3)
    accounts = Accounts(recorder)
    change = Change()
    for number in range(10):
        accounts.close(finished(caller=f"bounded-{number}"))
    assert [change.of("lexi_gateway_requests_total", caller=f"bounded-{number}") for number in (0, 2, 3)] == [1, 1, 0]
    assert change.of("lexi_gateway_requests_total", caller="_OTHER") == 7
    assert change.of("lexi_gateway_tokens_total", caller="_OTHER", direction="in") == 700


def test_the_row_says_who_asked_and_what_came_of_it(accounts: Accounts, recorder: Kept) -> None:
    call_id = new_call_id()
    accounts.close(finished(id=call_id, stream=True))
    [row] = recorder.calls
    assert (row.id, row.ts, row.service) == (call_id, time_of(call_id), "api")
    assert (row.prompt_key, row.prompt_version, row.caller) == ("v1/chat/completions", "", "desk")
    assert (row.request_id, row.http_status, row.streamed, row.success) == ("req-1", 200, True, True)
    assert (row.queue_ms, row.connect_ms, row.first_token_ms, row.total_ms) == (100, 2, 500, 1500)
    assert recorder.bodies == [None]


@pytest.mark.parametrize(
    ("endpoint", "body", "prompt"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, [{"role": "user", "content": "hi"}]),
        ("completions", {"prompt": "once"}, "once"),
        ("embeddings", {"input": ["a", "b"]}, ["a", "b"]),
        ("responses", {"input": "hi", "instructions": "be brief"}, "hi"),
    ],
)
def test_bodies_are_kept_as_prompt_rest_and_reply(
    accounts: Accounts, recorder: Kept, endpoint: str, body: dict[str, Any], prompt: Any
) -> None:
    asked = {"model": "Lexi", "temperature": 0, **body}
    accounts.close(finished(endpoint=endpoint, body=asked, reply="yes \x00"))
    [kept] = recorder.bodies
    assert kept is not None
    assert orjson.loads(kept.messages) == prompt
    rest = {name: value for name, value in asked.items() if name not in {"messages", "prompt", "input"}}
    assert orjson.loads(kept.sampling) == rest
    assert (kept.inputs, kept.reply) == (None, "yes \ufffd")


@pytest.mark.parametrize(
    ("error", "status", "body", "kept"),
    [
        (QUOTED, 400, None, "upstream_error"),
        ("context_length_exceeded: sell everything", 400, None, "context_length_exceeded"),
        ("BadRequestError: sell everything", 400, None, "400"),
        ("sell everything", 200, None, "_OTHER"),
        ("invalid_body: sell everything", 400, None, "invalid_body"),
        ("idle_timeout: silent for 5 s", 504, None, "idle_timeout: silent for 5 s"),
        (QUOTED, 400, {}, QUOTED),
        ("upstream_error: " + "x" * 500, 500, {}, ("upstream_error: " + "x" * 500)[:200]),
    ],
)
def test_a_row_quotes_an_engine_only_where_bodies_are_kept(
    accounts: Accounts, recorder: Kept, *, error: str, status: int, body: dict[str, Any] | None, kept: str
) -> None:
    accounts.close(finished(status="failed", http_status=status, error=error, body=body))
    assert [row.error for row in recorder.calls] == [kept]


def test_where_no_engine_was_asked_the_words_are_ours(accounts: Accounts, recorder: Kept) -> None:
    error = "rate_limit_exceeded: the key desk has used up its 3 requests per minute"
    accounts.close(finished(status="failed", http_status=429, error=error, attempts=0))
    assert [row.error for row in recorder.calls] == [error]


class Broken(Kept):
    def keep(self, call: CallRow, body: BodyRow | None = None) -> None:
        raise RuntimeError("full")


def test_closing_never_raises_and_what_can_be_kept_is_kept(accounts: Accounts, recorder: Kept) -> None:
    Accounts(Broken()).close(finished())
    accounts.close(finished(usage=Usage(-5, 3)))
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    accounts.close(finished(body={"messages": deep}))
    assert len(recorder.calls) == 2
    [body] = [body for body in recorder.bodies if body is not None]
    assert orjson.loads(body.messages)


@given(
    status=st.sampled_from(["ok", "failed", "timed_out", "cancelled"]),
    error=st.none() | st.text(),
    finish=st.text(),
    request_id=st.text(),
    tokens=st.tuples(st.integers(0, 10**20), st.integers(0, 10**20)),
)
def test_whatever_came_of_a_request_is_a_row_that_postgres_can_keep(
    status: Any, error: str | None, finish: str, request_id: str, tokens: tuple[int, int]
) -> None:
    recorder = Kept()
    Accounts(recorder).close(
        finished(status=status, error=error, finish_reason=finish, request_id=request_id, usage=Usage(*tokens))
    )
    [row] = recorder.calls
    for text in (row.error or "", row.finish_reason, row.request_id):
        assert "\x00" not in text
        text.encode()
    assert max(row.tokens_in, row.tokens_out) < 2**31
