"""What is told of a call while it happens: its log line and its span. Neither has a word of the prompt or the reply."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import structlog

from libs import tracing
from libs.llm.attempts import Outcome
from libs.llm.call_record import CallStatus
from libs.llm.types import Answer
from libs.telemetry import current_id
from libs.tracing import Value

if TYPE_CHECKING:
    from libs.llm.ledger import Question

At: TypeAlias = Callable[[Outcome], None]

log = structlog.get_logger(__name__)


def say(answer: Answer, status: CallStatus) -> None:
    """One line for each call. Of an error it has the code alone: its words may quote the prompt."""
    error = None if answer.error is None else status
    if answer.error is not None and answer.status == "unavailable":
        error = answer.error.partition(":")[0]
    log.info(
        "call",
        call_id=str(answer.call_id),
        prompt_key=answer.prompt_key,
        prompt_version=answer.prompt_version,
        status=status,
        error=error,
        cached=answer.cached,
        upstream=answer.upstream,
        took_ms=round(answer.total_ms, 1),
    )


@contextmanager
def at_engine(question: "Question") -> Generator[At]:
    """The span of one recorded call, its attempts included; what it yields is to be told the outcome."""
    if not tracing.is_on():
        yield _nothing
        return
    with tracing.span(f"chat {question.model}", "client", attributes=_asked(question)) as span:

        def told(outcome: Outcome) -> None:
            span.note({"lexi.upstream": outcome.upstream, "lexi.attempts": outcome.attempts})
            if outcome.error is not None:
                span.fail(outcome.error.code)
            if (reply := outcome.reply) is not None:
                span.note(
                    {
                        "gen_ai.response.model": reply.model,
                        "gen_ai.response.finish_reasons": [reply.finish_reason],
                        "gen_ai.usage.input_tokens": reply.usage.tokens_in,
                        "gen_ai.usage.output_tokens": reply.usage.tokens_out,
                    }
                )

        yield told


def _nothing(_outcome: Outcome) -> None:
    """Nobody listens."""


def _asked(question: "Question") -> dict[str, Value]:
    sampling, prompt = question.request.sampling, question.prompt
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",  # the form of the API, as the conventions have it for servers that speak it
        "gen_ai.request.model": question.model,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "lexi.call_id": str(question.call_id),
        "lexi.request_id": current_id(),
        "lexi.prompt.key": prompt.key,
        "lexi.prompt.version": prompt.version,
    }
