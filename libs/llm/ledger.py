"""From what happened to what is said and kept: answers for the caller, records for the recorder, numbers for metrics.

Every question put to `ask()` ends in exactly one record under its own call id, a repair turn in one more.
"""

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID

from prometheus_client import Counter, Histogram

from libs.llm.attempts import Outcome
from libs.llm.call_record import CallRecord, CallStatus, new_call_id, storable_text
from libs.llm.single_flight import Wait
from libs.llm.structured import Output, Parsed, Rejected
from libs.llm.telling import At, at_engine, say
from libs.llm.types import Answer, AnswerStatus, PromptVersion
from libs.telemetry import current_id
from libs.upstreams.errors import DeadlineExceeded, FirstTokenTimeout, IdleTimeout, NoSlot, UpstreamError
from libs.upstreams.types import ChatReply, ChatRequest, TimeLimits, TimeSplit, Usage

calls_total = Counter("lexi_llm_calls_total", "Model calls by outcome", ["prompt_key", "status", "cached"])
tokens_total = Counter("lexi_llm_tokens_total", "Tokens of model calls", ["prompt_key", "direction"])
call_seconds = Histogram(
    "lexi_llm_call_seconds",
    "Duration of model calls, cached ones left out",
    ["prompt_key"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 45, 90),
)
overhead_seconds = Histogram(
    "lexi_llm_overhead_seconds",
    "Duration of model calls less the time spent with engines",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5),
)

_TIMEOUTS = (DeadlineExceeded, FirstTokenTimeout, IdleTimeout, NoSlot)


@dataclass(frozen=True, slots=True)
class Question:
    """One `ask()` under way. Times are readings of the client's clock.

    `output` is what the prompt version accepts, compiled: taken along, since the prompts may change meanwhile.
    """

    call_id: UUID
    prompt: PromptVersion
    output: Output
    arm: str
    inputs: Mapping[str, Any] | None
    request: ChatRequest
    upstream: str
    model: str
    limits: TimeLimits
    started: float
    deadline: float
    subject: str = ""
    repairs: UUID | None = None
    repair_started: float | None = None
    replay_of: UUID | None = None

    @property
    def begun(self) -> float:
        """When this call began: for a repair turn, when the repair did."""
        return self.started if self.repair_started is None else self.repair_started


class Records(Protocol):
    """Where a record of each call goes: the recorder, or whatever stands in for it."""

    def record(self, call: CallRecord) -> None:
        """Take a call. Never blocks, never raises."""
        ...


class Unrecorded:
    """Keeps nothing: for calls that are recorded elsewhere, or where there is no database to keep them in."""

    def record(self, call: CallRecord) -> None:
        """Let the call go."""


class Ledger:
    """Turns outcomes into answers and hands a record of each to the recorder."""

    def __init__(self, recorder: Records, *, clock: Callable[[], float]) -> None:
        self._recorder = recorder
        self._clock = clock

    def answered(self, question: Question, outcome: Outcome, parsed: Parsed | Rejected) -> Answer:
        """The model replied; the reply is valid or not."""
        reply = outcome.reply
        if reply is None:
            raise ValueError("an outcome without a reply was not answered")
        problem = str(parsed) if isinstance(parsed, Rejected) else None
        value: Any = parsed.value if isinstance(parsed, Parsed) else None
        answer = self._answer(
            question,
            "ok" if problem is None else "invalid",
            text=storable_text(reply.text),
            value=storable_text(value) if isinstance(value, str) else value,
            error=problem,
            upstream=outcome.upstream,
            model=reply.model,
            usage=reply.usage,
            time=reply.time,
        )
        overhead_seconds.observe(max(0.0, answer.total_ms / 1000 - outcome.engine_s))
        self._keep(
            question,
            "ok" if problem is None else "invalid",
            answer,
            attempts=outcome.attempts,
            finish_reason=reply.finish_reason,
            time=reply.time,
        )
        return answer

    def repaired(self, question: Question, first: Answer, second: Answer) -> Answer:
        """The repair turn's answer with the time and tokens of both turns; each turn's own are in its record."""
        return replace(
            second,
            total_ms=(self._clock() - question.started) * 1000,
            tokens_in=first.tokens_in + second.tokens_in,
            tokens_out=first.tokens_out + second.tokens_out,
            queue_ms=first.queue_ms + second.queue_ms,
            first_queue_ms=first.queue_ms,
            first_token_ms=first.first_token_ms,
            first_error=first.error,
        )

    def unanswered(self, question: Question, outcome: Outcome) -> Answer:
        """No attempt brought a reply."""
        error = outcome.error
        if error is None:
            raise ValueError("an outcome without an error was answered")
        return self.failed(question, error, attempts=outcome.attempts)

    def failed(self, question: Question, error: UpstreamError, *, attempts: int = 0) -> Answer:
        """The call failed with `error`."""
        answer = self._answer(
            question,
            "unavailable",
            error=f"{error.code}: {error}",
            upstream=error.upstream or question.upstream,
            model=question.model,
        )
        self._keep(question, "timed_out" if isinstance(error, _TIMEOUTS) else "failed", answer, attempts=attempts)
        return answer

    def from_cache(self, question: Question, reply: ChatReply, value: Any) -> Answer:
        """A kept reply answers."""
        answer = self._answer(
            question, "ok", text=reply.text, value=value, cached=True, upstream=reply.upstream, model=reply.model
        )
        self._keep(question, "ok", answer, finish_reason=reply.finish_reason)
        return answer

    def shared(self, question: Question, answer: Answer, *, finish_reason: str) -> Answer:
        """Another caller's call answers; this caller gets an answer and a row of its own."""
        own = replace(
            answer,
            call_id=question.call_id,
            cached=bool(answer.text),
            arm=question.arm,
            tokens_in=0,
            tokens_out=0,
            total_ms=self._since(question),
        )
        status: CallStatus = "failed" if own.status == "unavailable" else own.status
        self._keep(question, status, own, finish_reason=finish_reason)
        return own

    @contextmanager
    def calling(self, question: Question) -> Generator[None]:
        """Records the call under way inside if it is cancelled, or fails by a bug of ours; raises it again."""
        try:
            yield
        except asyncio.CancelledError:
            self._broken_off(question, "cancelled", "cancelled: the caller went away")
            raise
        except Exception as error:
            self._broken_off(question, "failed", f"internal: {type(error).__name__}")
            raise

    @contextmanager
    def asking(self, question: Question) -> Generator[At]:
        """As `calling`, and a span of the trace around it."""
        with self.calling(question), at_engine(question) as told:
            yield told

    @contextmanager
    def leading(self, question: Question, *, survives: Callable[[], bool]) -> Generator[None]:
        """Records the first caller's cancellation under an id of its own where the flight goes on without it."""
        try:
            yield
        except asyncio.CancelledError:
            if survives():
                self._broken_off(replace(question, call_id=new_call_id()), "cancelled", "cancelled: others wait on")
            raise

    @contextmanager
    def waiting(self, question: Question) -> Generator[Wait]:
        """As `calling`, for a caller who joined another's call."""
        with self.calling(question):
            yield Wait(self._clock, question.deadline)

    def _broken_off(self, question: Question, status: CallStatus, error: str) -> None:
        answer = self._answer(question, "unavailable", error=error, upstream=question.upstream, model=question.model)
        self._keep(question, status, answer)

    def _since(self, question: Question) -> float:
        return (self._clock() - question.begun) * 1000

    def _answer(
        self,
        question: Question,
        status: AnswerStatus,
        *,
        upstream: str,
        model: str,
        text: str = "",
        value: Any = None,
        error: str | None = None,
        cached: bool = False,
        usage: Usage | None = None,
        time: TimeSplit | None = None,
    ) -> Answer:
        split = time if time is not None else TimeSplit()
        total_ms = self._since(question)
        before_ms = max(0.0, total_ms - split.total_ms)  # a split is of the last attempt; this is what went before it
        return Answer(
            status=status,
            text=text,
            value=value,
            error=error,
            cached=cached,
            call_id=question.call_id,
            model=model,
            upstream=upstream,
            prompt_key=question.prompt.key,
            prompt_version=question.prompt.version,
            prompt_hash=question.prompt.sha256,
            arm=question.arm,
            tokens_in=usage.tokens_in if usage is not None else 0,
            tokens_out=usage.tokens_out if usage is not None else 0,
            total_ms=total_ms,
            queue_ms=split.queue_ms,
            first_queue_ms=split.queue_ms,
            first_token_ms=before_ms + split.first_token_ms if split.first_token_ms else 0.0,
        )

    def _keep(
        self,
        question: Question,
        status: CallStatus,
        answer: Answer,
        *,
        attempts: int = 0,
        finish_reason: str = "",
        time: TimeSplit | None = None,
    ) -> None:
        key = question.prompt.key
        calls_total.labels(key, status, "yes" if answer.cached else "no").inc()
        if not answer.cached:
            call_seconds.labels(key).observe(answer.total_ms / 1000)
            tokens_total.labels(key, "in").inc(answer.tokens_in)
            tokens_total.labels(key, "out").inc(answer.tokens_out)
        split = time if time is not None else TimeSplit()
        self._recorder.record(
            CallRecord(
                id=answer.call_id,
                prompt_key=key,
                prompt_version=answer.prompt_version,
                prompt_hash=answer.prompt_hash,
                upstream=answer.upstream,
                model=answer.model,
                status=status,
                messages=question.request.messages,
                sampling=question.request.sampling,
                inputs=question.inputs,
                reply=answer.text,
                arm=question.arm,
                subject=question.subject,
                error=answer.error,
                cached=answer.cached,
                attempts=attempts,
                repaired=question.repairs is not None,
                retry_of=question.repairs,
                replay_of=question.replay_of,
                finish_reason=finish_reason,
                usage=Usage(answer.tokens_in, answer.tokens_out),
                time=replace(split, total_ms=answer.total_ms),
                request_id=current_id(),
            )
        )
        say(answer, status)
