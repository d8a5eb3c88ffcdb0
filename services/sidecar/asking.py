"""Hermes and Phi-3, asked the way every model of the house is asked: slots, limits, validation, repair, record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog
from prometheus_client import Counter

from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits
from libs.upstreams.upstream import DEAD
from services.sidecar.answers import SPOKEN, Failure, failure_of, json_text, not_loaded, too_long
from services.sidecar.fitting import Fit, answer_tokens, least_tokens, object_tokens
from services.sidecar.places import ModelName, Places
from services.sidecar.requests import Question

ANSWERS = Counter(
    "lexi_sidecar_answers_total",
    "Answers of the sidecar's models, whatever status their caller got",
    ["model", "outcome"],
)

log = structlog.get_logger(__name__)

Said = Mapping[str, Any] | Failure


class Asker(Protocol):
    """What is needed of `libs.llm.client.Client`."""

    async def ask(
        self,
        key: str,
        inputs: Mapping[str, object],
        *,
        priority: Priority,
        upstream: str,
        limits: TimeLimits,
        use_cache: bool,
        sampling: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One question; a model's failure is an answer too."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The two models. `noted` hears of every answer: the model's name, the upstream asked, and what came."""

    client: Asker
    places: Places
    limits: TimeLimits
    noted: Callable[[str, Answer], None]
    clock: Callable[[], float] = time.monotonic

    def deadline(self) -> float:
        """When an answer that is begun now must have ended."""
        return self.clock() + self.limits.total_s

    async def generate(self, question: Question) -> Said:
        """Hermes's text."""
        answer = await self._hermes("generate", {"prompt": question.prompt}, question, deadline=self.deadline())
        return answer if isinstance(answer, Failure) else {"generated_text": answer}

    async def adjust(self, question: Question) -> Said:
        """Phi-3's object, valid or none."""
        return await self._phi3(question, deadline=self.deadline())

    async def propose(self, question: Question) -> Said:
        """Phi-3's object and what Hermes says of it: both, or an error. A proposal that nobody reviewed is not given
        out, and Phi-3 is not asked while Hermes is away.
        """
        deadline = self.deadline()
        if self.places.status_of("hermes").state in DEAD:
            return self._failed("hermes", not_loaded("hermes"), reason="the upstream is away")
        proposal = await self._phi3(question, deadline=deadline)
        if isinstance(proposal, Failure):
            return proposal
        inputs = {"request": question.prompt, "proposal": json_text(proposal)}
        assessment = await self._hermes("adjustment_review", inputs, question, deadline=deadline)
        if isinstance(assessment, Failure):
            return assessment
        return {"phi3_proposal": proposal, "hermes_assessment": assessment}

    async def _hermes(
        self, key: str, inputs: Mapping[str, str], question: Question, *, deadline: float
    ) -> str | Failure:
        answer = await self._ask("hermes", key, inputs, question=question, fit=answer_tokens, deadline=deadline)
        if isinstance(answer, Failure):
            return answer
        if answer.status == "unavailable":
            return self._judged("hermes", answer)
        ANSWERS.labels("hermes", "ok").inc()
        return answer.text  # any text will do, and saying nothing is an answer too

    async def _phi3(self, question: Question, *, deadline: float) -> Mapping[str, Any] | Failure:
        inputs = {"prompt": question.prompt}
        answer = await self._ask("phi3", "adjustment", inputs, question=question, fit=object_tokens, deadline=deadline)
        if isinstance(answer, Failure):
            return answer
        if answer.status != "ok":
            return self._judged("phi3", answer)
        ANSWERS.labels("phi3", "ok").inc()
        return answer.value

    async def _ask(
        self,
        name: ModelName,
        key: str,
        inputs: Mapping[str, str],
        *,
        question: Question,
        fit: Fit,
        deadline: float,
    ) -> Answer | Failure:
        text, window = "\n".join(inputs.values()), self.places.window_of(name)
        if least_tokens(text) >= window:
            return self._failed(name, too_long(window), reason="prompt_too_long")
        upstream = self.places.upstream_of(name)
        answer = await self.client.ask(
            key,
            inputs,
            priority=Priority.INTERACTIVE,
            upstream=upstream,
            limits=replace(self.limits, total_s=max(0.001, deadline - self.clock())),
            use_cache=False,
            sampling={"max_tokens": fit(text, question.max_length, window=window)},
        )
        self.noted(upstream, answer)
        return answer

    def _judged(self, name: ModelName, answer: Answer) -> Failure:
        has_share = self.places.entered(name) is not None
        failure = failure_of(answer, name, window=self.places.window_of(name), has_share=has_share)
        return self._failed(name, failure, reason=(answer.error or "").partition(":")[0], call_id=str(answer.call_id))

    def _failed(self, name: ModelName, failure: Failure, *, reason: str, call_id: str | None = None) -> Failure:
        """Old clients are told to look into the logs, so what there is stands there."""
        ANSWERS.labels(name, "failed").inc()
        upstream = self.places.upstream_of(name)
        log.warning("model_gave_no_answer", model=SPOKEN[name], upstream=upstream, reason=reason, call_id=call_id)
        return failure
