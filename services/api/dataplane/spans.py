"""The span of one place that a request was sent to. Nothing of the body is in it but numbers and the model's name."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from libs import tracing
from libs.tracing import Value
from libs.upstreams.errors import UpstreamError
from libs.upstreams.upstream import Upstream
from services.api.dataplane.call import Call
from services.api.dataplane.inquiry import Endpoint, Inquiry

OPERATIONS: Mapping[Endpoint, str] = {
    "chat/completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""The names that the GenAI conventions have for what the endpoints do."""


@contextmanager
def engine_span(call: Call, inquiry: Inquiry, place: Upstream) -> Generator[None]:
    """Around asking one place, its answer's way to the client included where that is streamed."""
    operation, model = OPERATIONS[call.endpoint], place.entry.model
    asked: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": model,
        "gen_ai.request.stream": inquiry.stream,
        "lexi.call_id": str(call.id),
        "lexi.request_id": call.request_id,
        "lexi.caller": call.key.name,
        "lexi.upstream": place.entry.name,
    }
    with tracing.span(f"{operation} {model}", "client", attributes=asked) as span:
        try:
            yield
        except UpstreamError as error:
            span.fail(error.code)
            raise
        finally:
            span.note(_answered(call))


def _answered(call: Call) -> dict[str, Value]:
    outcome = call.outcome()
    told: dict[str, Value] = {}
    if outcome.usage is not None:
        told["gen_ai.usage.input_tokens"] = outcome.usage.tokens_in
        told["gen_ai.usage.output_tokens"] = outcome.usage.tokens_out
    if outcome.finish_reason:
        told["gen_ai.response.finish_reasons"] = outcome.finish_reason.split(",")
        told["gen_ai.response.model"] = call.model
    return told
