"""What the fake engine says: faults, replies, the texts of /metrics, answers that fit a constraint."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias, cast


class Fault(StrEnum):
    """How a request goes wrong."""

    NONE = "none"
    STATUS = "status"  # answers `fault_status`, with `retry_after` and `fault_body`
    SILENT = "silent"  # takes the request, holds a slot, never answers
    HEADERS_ONLY = "headers_only"  # status and headers, then silence
    PINGS_ONLY = "pings_only"  # SSE comments for ever, never a token
    STALL = "stall"  # the first half of the chunks, then silence
    CUT = "cut"  # the first half of the chunks, then the connection is gone
    CLOSE = "close"  # the connection is gone before a byte of an answer
    MALFORMED = "malformed"  # an event that is not JSON
    GARBAGE = "garbage"  # not HTTP
    NO_FINISH = "no_finish"  # ends with [DONE] and without a finish reason
    NO_DONE = "no_done"  # ends after the finish reason, without [DONE]
    ERROR_EVENT = "error_event"  # an error object inside the stream
    NO_USAGE = "no_usage"  # a good answer that does not count its tokens
    ENDS_EARLY = "ends_early"  # the first half of the chunks, then a clean end of the body
    DUPLICATE_FINISH = "duplicate_finish"  # the finish reason comes twice
    BAD_CHUNK = "bad_chunk"  # chunked framing that is none
    RESET = "reset"  # a TCP reset before a byte of an answer
    RESET_AFTER_HEAD = "reset_after_head"  # status and headers, then a TCP reset
    RESET_MIDSTREAM = "reset_midstream"  # the first half of the chunks, then a TCP reset
    CUT_BODY = "cut_body"  # half of a body whose length was announced, then the connection is gone
    LENGTH_TOO_LONG = "length_too_long"  # announces more bytes than it sends, then closes
    LENGTH_TOO_SHORT = "length_too_short"  # announces fewer bytes than it sends
    HUGE = "huge"  # a good answer of `huge_bytes`, in a stream one event
    NOT_JSON = "not_json"  # status 200 with a page of HTML
    STALE = "stale"  # a connection that carried a request before is closed when it is used again
    CONTEXT = "context"  # refuses the request as too long for the context
    STUCK = "stuck"  # the engine hangs: requests hold slots and get nothing, /health stays 200, no progress
    FROZEN = "frozen"  # the process hangs: connections are accepted and nothing is ever answered, on any path


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the caller's functions; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `tokens_out` None counts words; `tools` are called where the request brought tools along."""

    text: str
    finish_reason: str = "stop"
    tokens_in: int = 10
    tokens_out: int | None = None
    fault: Fault | None = None
    delay_s: float | None = None
    tools: tuple[ToolCall, ...] = ()


ReplySource: TypeAlias = "str | Reply | Callable[[dict[str, Any]], str | Reply]"
FakeDialect: TypeAlias = Literal["vllm", "llamacpp", "openai"]


def split(text: str, pieces: int) -> list[str]:
    """Cut a text into at most `pieces` parts of about the same length."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[start : start + size] for start in range(0, len(text), size)]


def llamacpp_metrics(active: int, waiting: int, iterations: int, tokens: int) -> str:
    """The counters llama.cpp's server publishes, without labels."""
    pairs = {
        "llamacpp:prompt_tokens_total": iterations,
        "llamacpp:tokens_predicted_total": tokens,
        "llamacpp:n_decode_total": iterations,
        "llamacpp:requests_processing": active,
        "llamacpp:requests_deferred": waiting,
    }
    return "".join(f"# HELP {name} text\n# TYPE {name} gauge\n{name} {value}\n" for name, value in pairs.items())


def vllm_metrics(model: str, active: int, waiting: int, iterations: int, tokens: int) -> str:
    """The series of vLLM that matter here, with neighbours whose names begin alike."""
    label = f'{{engine="0",model_name="{model}"}}'
    return (
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        "# TYPE vllm:num_requests_running gauge\n"
        f"vllm:num_requests_running{label} {float(active)}\n"
        f"vllm:num_requests_waiting{label} {float(waiting)}\n"
        f"vllm:kv_cache_usage_perc{label} 0.1\n"
        f"vllm:generation_tokens_total{label} {float(tokens)}\n"
        f"vllm:generation_tokens_created{label} 1.7e+09\n"
        f'vllm:iteration_tokens_total_bucket{{engine="0",le="1.0",model_name="{model}"}} 4.0\n'
        f"vllm:iteration_tokens_total_sum{label} {float(tokens)}\n"
        f"vllm:iteration_tokens_total_count{label} {float(iterations)}\n"
    )


def sample(schema: Mapping[str, Any], text: str) -> Any:
    """A small value valid under a plain JSON schema: required members, first words of enums, `text` elsewhere."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = cast("list[str]", kind)[0]
    if kind == "object":
        members = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties", {}))
        return {name: sample(members[name], text) for name in schema.get("required", members)}
    if kind == "array":
        return [sample(schema["items"], text) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return text[: schema.get("maxLength", len(text))]
    plain: dict[str, Any] = {"boolean": True, "number": schema.get("minimum", 0.5), "integer": schema.get("minimum", 1)}
    return plain.get(str(kind))


def by_constraint(text: str) -> Callable[[dict[str, Any]], str]:
    """Answer a choice with its first word, a schema with a value that fits it, a grammar (which names no schema) with
    a permitting decision, and everything else with `text`.
    """

    def answer(body: dict[str, Any]) -> str:
        wanted = cast("dict[str, Any]", body.get("structured_outputs") or {})
        form = cast("dict[str, Any]", body.get("response_format") or {})
        schema = wanted.get("json") or form.get("json_schema", {}).get("schema")
        if "choice" in wanted:
            return str(wanted["choice"][0])
        if schema is not None:
            return json.dumps(sample(cast("Mapping[str, Any]", schema), text))
        return '{"allow":true,"reasons":[],"flags":[]}' if "grammar" in body else text

    return answer
