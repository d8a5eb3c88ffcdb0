"""What is counted and kept of each request under `/v1`: metrics, and one row through the recorder.

Labels are bounded: a model is a configured name or `_OTHER`, a caller the name of a key, an error a code of ours or an
HTTP status.

A row says what went wrong by its code and, in the gateway's own words, why. An engine's words may quote the prompt, so
they are kept only where the caller's bodies are kept too.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import structlog

from libs.llm.call_record import BodyRow, CallRow, CallStatus, json_text, new_call_id, storable_text, time_of
from libs.llm.calls import Recorder
from libs.metrics import CounterCell
from libs.telemetry import AFew
from libs.upstreams.types import TimeSplit, Usage
from services.api.dataplane.inquiry import Endpoint
from services.api.dataplane.metrics import Series, overhead, requests_total, tokens_total

log = structlog.get_logger(__name__)

OTHER = "_OTHER"
NO_TOKENS = Usage()
MOST_CALLERS = 1000
"""So many names of keys get series of their own."""
ERROR_CHARACTERS = 200
WORD_CHARACTERS = 128
MOST_TOKENS = 2**31 - 1
BAD_STATUS = 400
SERVER_ERROR = 500
LINES_PER_S = 10

OUR_WORDS: Final = frozenset({
    "broken_stream", "overloaded", "upstream_unavailable", "connect_failed", "connect_timeout", "first_byte_timeout",
    "idle_timeout", "deadline_exceeded", "client_left", "client_stalled", "shutting_down", "internal_error",
})  # fmt: skip
"""Codes whose message is the gateway's own also where an engine was asked."""
CODES: Final = OUR_WORDS | {
    "invalid_json", "invalid_body", "invalid_header", "field_refused",
    "unsupported_by_upstream", "model_not_allowed", "model_not_found", "request_timeout", "body_too_large",
    "rate_limit_exceeded", "context_length_exceeded", "bad_upstream_answer", "upstream_busy", "upstream_refused_key",
    "upstream_error",
}  # fmt: skip
"""Everything that a call may end with; an engine's own codes are not among them."""

PROMPT_FIELDS: Mapping[Endpoint, str] = {
    "chat/completions": "messages",
    "responses": "input",
    "completions": "prompt",
    "embeddings": "input",
}
PROMPT_KEYS: Mapping[Endpoint, str] = {endpoint: f"v1/{endpoint}" for endpoint in PROMPT_FIELDS}


@dataclass(slots=True, kw_only=True)
class Finished:
    """Everything known at the end of one request under `/v1` that got as far as a known key.

    `status` is ok, failed, timed_out or cancelled (the caller left); `error` is "code: message". `upstream` and `model`
    are of the place that answered, empty where none did. `body` is None and `reply` empty where they are not kept.
    """

    request_id: str
    caller: str
    endpoint: Endpoint
    asked_model: str
    stream: bool
    http_status: int
    status: CallStatus
    error: str | None
    upstream: str
    model: str
    attempts: int
    cached: bool
    finish_reason: str
    usage: Usage
    time: TimeSplit
    overhead_s: float
    body: Mapping[str, Any] | None
    reply: str
    id: UUID = field(default_factory=new_call_id)


class Accounts:
    """Closes the account of each request. `models` gives the names that are configured."""

    def __init__(self, recorder: Recorder, *, models: Callable[[], Collection[str]] = tuple) -> None:
        self._recorder = recorder
        self._models = models
        self._series: dict[tuple[str, str, str, str], Series] = {}
        self._callers: dict[str, tuple[CounterCell, CounterCell]] = {}
        self._requests: dict[tuple[str, str, int, str, bool], CounterCell] = {}
        self._failures = AFew(LINES_PER_S)
        self._overhead = {endpoint: overhead.labels(endpoint) for endpoint in PROMPT_FIELDS}

    def close(self, call: Finished) -> None:
        """Count the request and hand its row to the recorder. Never raises, never waits."""
        try:
            self._count(call)
        except Exception:
            log.exception("request_not_counted", request_id=call.request_id)
        try:
            self._keep(call)
        except Exception:
            log.exception("request_not_recorded", request_id=call.request_id)
        if call.http_status >= SERVER_ERROR and self._failures.may():
            self._say(call)

    def _say(self, call: Finished) -> None:
        """One line for a request that failed on this side of the client, so many a second at most; rows have all."""
        log.warning(
            "call",
            request_id=call.request_id,
            call_id=str(call.id),
            endpoint=call.endpoint,
            status=call.status,
            error=error_type(call),
            http_status=call.http_status,
            upstream=call.upstream,
            unsaid=self._failures.forget_unsaid(),
        )

    def _count(self, call: Finished) -> None:
        which = (call.endpoint, call.caller, call.http_status, call.status, call.cached)
        counter = self._requests.get(which)
        if counter is None:
            counter = self._requests[which] = self._new_requests(call)
        counter.inc()
        self._overhead[call.endpoint].observe(call.overhead_s)
        if call.cached:
            return
        error = error_type(call)
        series = self._series.get((call.endpoint, call.asked_model, call.model, error))
        if series is None:
            series = self._series_of(call, error)
        series.observe(call.time, call.usage, streamed=call.stream, asked=call.attempts > 0, overhead_s=call.overhead_s)
        if call.usage.tokens_in or call.usage.tokens_out:
            tokens = self._callers.get(call.caller) or self._new_caller(call.caller)
            tokens[0].inc(call.usage.tokens_in)
            tokens[1].inc(call.usage.tokens_out)

    def _series_of(self, call: Finished, error: str) -> Series:
        asked, answered = call.asked_model, call.model
        if asked and asked != answered and asked not in self._models():
            asked = OTHER
        which = (call.endpoint, asked, answered, error)
        series = self._series.get(which)
        if series is None:
            series = self._series[which] = Series(call.endpoint, asked, answered, error=error)
        return series

    def _known(self, caller: str) -> str:
        return caller if caller in self._callers or len(self._callers) < MOST_CALLERS else OTHER

    def _new_caller(self, caller: str) -> tuple[CounterCell, CounterCell]:
        name = self._known(caller)
        counters = tokens_total.labels(name, "in"), tokens_total.labels(name, "out")
        self._callers[name] = counters
        return counters

    def _new_requests(self, call: Finished) -> CounterCell:
        if call.caller not in self._callers:
            self._new_caller(call.caller)
        cached = "yes" if call.cached else "no"
        return requests_total.labels(call.endpoint, self._known(call.caller), call.http_status, call.status, cached)

    def _keep(self, call: Finished) -> None:
        ts, time = time_of(call.id), call.time
        usage = NO_TOKENS if call.cached else call.usage
        # By position, in the order of the table: by name, making a row would cost as much again.
        row = CallRow(
            ts, call.id, self._recorder.service, PROMPT_KEYS[call.endpoint], "", "", "", call.upstream, call.model, "",
            call.status == "ok", call.status, None if call.error is None else kept_error(call), call.cached,
            call.attempts, False, None, time.queue_ms, time.connect_ms, time.first_token_ms, time.total_ms,
            min(usage.tokens_in, MOST_TOKENS), min(usage.tokens_out, MOST_TOKENS),
            storable_text(call.finish_reason[:WORD_CHARACTERS]), call.caller,
            storable_text(call.request_id[:WORD_CHARACTERS]), call.http_status, call.stream,
        )  # fmt: skip
        body = None if call.body is None else _body_row(row, call)
        self._recorder.keep(row, body)


def _body_row(row: CallRow, call: Finished) -> BodyRow:
    asked = dict(call.body or {})
    prompt = asked.pop(PROMPT_FIELDS[call.endpoint], None)
    return BodyRow(
        ts=row.ts,
        id=row.id,
        messages=json_text(prompt),
        sampling=json_text(asked),
        inputs=None,
        reply=storable_text(call.reply),
    )


def error_type(call: Finished) -> str:
    """A short name of what went wrong, one of a bounded number; empty where nothing did."""
    if call.error is None:
        return "" if call.status == "ok" else call.status
    code = call.error.partition(":")[0]
    if code in CODES:
        return code
    return str(call.http_status) if call.http_status >= BAD_STATUS else OTHER


def kept_error(call: Finished) -> str:
    """What a row says of an error: its code, and the message where it is ours or the caller's bodies are kept."""
    error = call.error or ""
    if call.body is not None or not call.attempts or error.partition(":")[0] in OUR_WORDS:
        return storable_text(error[:ERROR_CHARACTERS])
    return error_type(call)
