"""The one judgement path: inputs, arm, render, ask, parse, rules. Forecast, replay and evaluation all take it.

Rendering and the choice of the arm happen inside the client; nothing here knows a prompt's wording.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast
from uuid import UUID

import structlog

from libs.judgement.inputs import prompt_inputs
from libs.judgement.rules import Rules
from libs.judgement.types import Decision, Inputs, Judgement
from libs.llm.experiments import Unit
from libs.llm.structured import ungrounded_numbers
from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits

RATIONALE: Final = "rationale"
POLICY: Final = "policy"
PRIORITIES: Final = {RATIONALE: Priority.RATIONALE, POLICY: Priority.POLICY}
MAX_ERROR_CHARS = 300

log = structlog.get_logger(__name__)


class Asker(Protocol):
    """What is needed of `libs.llm.client.Client`."""

    async def ask(
        self,
        key: str,
        inputs: Mapping[str, object],
        *,
        unit: Unit | None = None,
        version: str | None = None,
        priority: Priority = Priority.INTERACTIVE,
        upstream: str = "lexi",
        limits: TimeLimits | None = None,
        use_cache: bool = True,
        subject: str = "",
    ) -> Answer:
        """Ask a prompt; a model's failure is an answer, a prompt that cannot be rendered an exception."""
        ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How to ask, where it is not as usual: pinned versions by prompt key, another upstream, other limits.

    `priority` replaces the classes of policy and rationale, for work that must give way, such as replays.
    """

    versions: Mapping[str, str] | None = None
    upstream: str = "lexi"
    limits: TimeLimits | None = None
    use_cache: bool = True
    priority: Priority | None = None


USUAL: Final = Manner()


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer, or why no call came about."""

    answer: Answer | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One judgement to be made: everything that asking for it takes."""

    inputs: Inputs
    variables: Mapping[str, object]
    client: Asker
    unit: Unit
    subject: str
    manner: Manner

    async def ask(self, key: str) -> Asked:
        """Ask one of the two prompts.

        Whatever breaks on our side (a template, a variable) is logged and becomes the row's error: it must neither
        take the other answer down nor lose the forecast.
        """
        manner = self.manner
        try:
            answer = await self.client.ask(
                key,
                self.variables,
                unit=self.unit,
                version=(manner.versions or {}).get(key),
                priority=PRIORITIES[key] if manner.priority is None else manner.priority,
                upstream=manner.upstream,
                limits=manner.limits,
                use_cache=manner.use_cache,
                subject=self.subject,
            )
        except Exception as error:  # noqa: BLE001 - logged, kept in the row; see the docstring
            name = type(error).__name__
            log.error("ask_failed", prompt_key=key, ticker=self.inputs.ticker, error=name)  # noqa: TRY400 - it may quote a prompt
            return Asked(None, f"{name}: {error}"[:MAX_ERROR_CHARS])
        return Asked(answer)


def case_of(
    inputs: Inputs, *, client: Asker, rules: Rules, feed: str, forecast_id: UUID | None, manner: Manner
) -> Case:
    """The case that inputs make; the calls' subject is the ticker and its day."""
    return Case(
        inputs=inputs,
        variables=prompt_inputs(inputs, rules, feed=feed),
        client=client,
        unit=Unit(ticker=inputs.ticker, as_of=inputs.as_of, forecast_id=forecast_id),
        subject=f"{inputs.ticker} {inputs.as_of.date().isoformat()}",
        manner=manner,
    )


async def assess(
    inputs: Inputs,
    *,
    client: Asker,
    rules: Rules,
    feed: str,
    forecast_id: UUID | None = None,
    manner: Manner = USUAL,
) -> Judgement:
    """Judge a forecast: rationale and policy are asked together, the rules in code beside them.

    Always returns, unless cancelled: a failure of the model, or of either prompt, is part of the judgement.
    """
    case = case_of(inputs, client=client, rules=rules, feed=feed, forecast_id=forecast_id, manner=manner)
    rationale, policy = await asyncio.gather(case.ask(RATIONALE), case.ask(POLICY))
    answer, decision = decided(policy.answer)
    return Judgement(
        inputs=inputs,
        rationale=rationale.answer,
        policy=answer,
        decision=decision,
        rules=rules.judge(inputs, feed),
        ungrounded_numbers=ungrounded_numbers(rationale_text(rationale.answer), case.variables),
        rationale_error=rationale.error,
        policy_error=policy.error,
    )


async def reassess(
    judgement: Judgement,
    *,
    client: Asker,
    rules: Rules,
    feed: str,
    forecast_id: UUID | None = None,
    manner: Manner = USUAL,
) -> Judgement:
    """Judge the same inputs again: rules anew, policy asked again (the cache may answer), the rationale kept."""
    inputs = judgement.inputs
    case = case_of(inputs, client=client, rules=rules, feed=feed, forecast_id=forecast_id, manner=manner)
    policy = await case.ask(POLICY)
    answer, decision = decided(policy.answer)
    verdict = rules.judge(inputs, feed)
    return replace(judgement, policy=answer, decision=decision, rules=verdict, policy_error=policy.error)


def decided(answer: Answer | None) -> tuple[Answer | None, Decision | None]:
    """The policy answer with its decision. An answer whose value is no decision is invalid, whatever it was before."""
    if answer is None or answer.status != "ok":
        return answer, None
    decision = parse_decision(answer.value)
    if decision is None:
        return replace(answer, status="invalid", value=None, error="decision: the validated value is no decision"), None
    return answer, decision


def parse_decision(value: Any) -> Decision | None:
    """The decision in a policy value, or None: exactly `allow` (a boolean), `reasons` and `flags` (lists of texts)."""
    if not isinstance(value, dict) or set(cast("dict[Any, Any]", value)) != {"allow", "reasons", "flags"}:
        return None
    fields = cast("dict[str, Any]", value)
    allow, reasons, flags = fields["allow"], texts_of(fields["reasons"]), texts_of(fields["flags"])
    if not isinstance(allow, bool) or reasons is None or flags is None:
        return None
    return Decision(allow=allow, reasons=reasons, flags=flags)


def texts_of(value: Any) -> tuple[str, ...] | None:
    """The texts of a list, or None when it is no list or holds something else."""
    if not isinstance(value, list):
        return None
    items = cast("list[Any]", value)
    texts = tuple(item for item in items if isinstance(item, str))
    return texts if len(texts) == len(items) else None


def rationale_text(answer: Answer | None) -> str:
    """The plain text of a rationale: the value itself, or its `text` where the version answers with JSON.

    Without a valid answer it is the reply as received, which may be empty.
    """
    if answer is None:
        return ""
    match answer.value:
        case str() as text:
            return text
        case {"text": str() as text}:
            return text
        case _:
            return answer.text
