"""The metrics of `/v1`, with OpenTelemetry's GenAI names as Prometheus spells them and the buckets that they advise.

To its callers the gateway is a model server (`gen_ai_server_*`), to the engines a client (`gen_ai_client_*`). Answers
from the cache are no work of a model: they count as requests only.
"""

from collections.abc import Mapping

from libs.metrics import Counters, Histograms
from libs.upstreams.types import TimeSplit, Usage
from services.api.dataplane.inquiry import Endpoint

OPERATIONS: Mapping[Endpoint, str] = {
    "chat/completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}

_CALL = ["gen_ai_operation_name", "gen_ai_request_model", "gen_ai_response_model"]
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

server_duration = Histograms(
    "gen_ai_server_request_duration_seconds",
    "Duration of requests as callers see it",
    [*_CALL, "error_type"],
    buckets=_SECONDS,
)
first_token = Histograms(
    "gen_ai_server_time_to_first_token_seconds",
    "Time to the first token of answers that were streamed whole",
    _CALL,
    buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
per_token = Histograms(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per output token after the first one, of answers that were streamed whole",
    _CALL,
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
client_duration = Histograms(
    "gen_ai_client_operation_duration_seconds",
    "Time spent with engines, waiting for a slot left out",
    [*_CALL, "error_type"],
    buckets=_SECONDS,
)
token_usage = Histograms(
    "gen_ai_client_token_usage",
    "Tokens of a call as the engine counted them",
    [*_CALL, "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
)
overhead = Histograms(
    "lexi_gateway_overhead_seconds",
    "Duration of requests less the time spent waiting for a slot or an engine",
    ["endpoint"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.006, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
requests_total = Counters(
    "lexi_gateway_requests",
    "Requests by key, status answered with and outcome (a broken stream was answered with 200)",
    ["endpoint", "caller", "status_code", "outcome", "cached"],
)
tokens_total = Counters("lexi_gateway_tokens", "Tokens by key, estimated for broken calls", ["caller", "direction"])


class Series:
    """The series of one operation, pair of models and kind of error, looked up once."""

    __slots__ = ("client", "first_token", "per_token", "server", "tokens_in", "tokens_out")

    def __init__(self, endpoint: Endpoint, asked: str, answered: str, *, error: str) -> None:
        operation = OPERATIONS[endpoint]
        self.server = server_duration.labels(operation, asked, answered, error)
        self.client = client_duration.labels(operation, asked, answered, error)
        self.tokens_in = token_usage.labels(operation, asked, answered, "input")
        self.tokens_out = token_usage.labels(operation, asked, answered, "output")
        self.first_token = self.per_token = None
        if not error:
            self.first_token = first_token.labels(operation, asked, answered)
            self.per_token = per_token.labels(operation, asked, answered)

    def observe(self, time: TimeSplit, usage: Usage, *, streamed: bool, asked: bool, overhead_s: float) -> None:
        """Count a call that a model worked on, or should have; `asked` says whether any engine was."""
        total_s = time.total_ms / 1000
        self.server.observe(total_s)
        if asked:
            self.client.observe(max(0.0, total_s - time.queue_ms / 1000 - overhead_s))
        if not usage.estimated:
            if usage.tokens_in:
                self.tokens_in.observe(usage.tokens_in)
            if usage.tokens_out:
                self.tokens_out.observe(usage.tokens_out)
        if streamed and self.first_token is not None and self.per_token is not None:
            first_s = time.first_token_ms / 1000
            self.first_token.observe(first_s)
            if usage.tokens_out > 1:
                self.per_token.observe(max(0.0, total_s - first_s) / (usage.tokens_out - 1))
