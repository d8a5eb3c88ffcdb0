"""Hermes and Phi-3, asked the way every model of the house is asked: slots, limits, validation, repair, record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog
from prometheus_client import Counter

from libs.llm.types import Answer
from libs.llm.untrusted import clean_text
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

LONGEST_REVIEWED = 1_000_000
"""Characters of a request or a proposal that a review shows, as `adjustment_review` says: what is longer is refused,
since who reads it would judge another thing than was asked or proposed.
"""

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
        inputs, deadline = {"prompt": question.prompt}, self.deadline()
        answer = await self._hermes("generate", inputs, question, shown=question.prompt, deadline=deadline)
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
        assessment = await self._review(question, proposal, deadline=deadline)
        if isinstance(assessment, Failure):
            return assessment
        return {"phi3_proposal": proposal, "hermes_assessment": assessment}

    async def _review(self, question: Question, proposal: Mapping[str, Any], *, deadline: float) -> str | Failure:
        """Hermes on the whole request and the whole proposal, in the letters they are written in."""
        inputs = {"request": question.prompt, "proposal": json_text(proposal, ascii_only=False)}
        shown, window = json_text(inputs, ascii_only=False), self.places.window_of("hermes")
        if least_tokens(shown) >= window or any(map(_would_be_cut, inputs.values())):
            return self._failed("hermes", too_long(window), reason="prompt_too_long")
        return await self._hermes("adjustment_review", inputs, question, shown=shown, deadline=deadline)

    async def _hermes(
        self, key: str, inputs: Mapping[str, str], question: Question, *, shown: str, deadline: float
    ) -> str | Failure:
        """Its text. `shown` is what it reads of the inputs, for the count of tokens."""
        tokens = self._fitted("hermes", shown, question, fit=answer_tokens)
        if isinstance(tokens, Failure):
            return tokens
        answer = await self._ask("hermes", key, inputs, tokens=tokens, deadline=deadline)
        if answer.status == "unavailable":
            return self._judged("hermes", answer)
        ANSWERS.labels("hermes", "ok").inc()
        return answer.text  # any text will do, and saying nothing is an answer too

    async def _phi3(self, question: Question, *, deadline: float) -> Mapping[str, Any] | Failure:
        tokens = self._fitted("phi3", question.prompt, question, fit=object_tokens)
        if isinstance(tokens, Failure):
            return tokens
        inputs = {"prompt": question.prompt}
        answer = await self._ask("phi3", "adjustment", inputs, tokens=tokens, deadline=deadline)
        if answer.status != "ok":
            return self._judged("phi3", answer)
        ANSWERS.labels("phi3", "ok").inc()
        return answer.value

    def _fitted(self, name: ModelName, shown: str, question: Question, *, fit: Fit) -> int | Failure:
        """New tokens to ask for, or that there is no room for any."""
        window = self.places.window_of(name)
        if least_tokens(shown) >= window:
            return self._failed(name, too_long(window), reason="prompt_too_long")
        return fit(shown, question.max_length, window=window)

    async def _ask(
        self, name: ModelName, key: str, inputs: Mapping[str, str], *, tokens: int, deadline: float
    ) -> Answer:
        upstream = self.places.upstream_of(name)
        answer = await self.client.ask(
            key,
            inputs,
            priority=Priority.INTERACTIVE,
            upstream=upstream,
            limits=replace(self.limits, total_s=max(0.001, deadline - self.clock())),
            use_cache=False,
            sampling={"max_tokens": tokens},
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


def _would_be_cut(text: str) -> bool:
    """Whether a review would show less than the whole; cleaning may make a text longer."""
    return len(clean_text(text, max_chars=LONGEST_REVIEWED + 1)) > LONGEST_REVIEWED
