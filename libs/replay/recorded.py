"""A recorded answer: what it came to when it came, and what today's code makes of it. Pure."""

from typing import Any

from libs.judgement.assess import POLICY, decided
from libs.judgement.record import read_decision
from libs.llm.errors import UnknownPrompt
from libs.llm.registry import Registry
from libs.llm.structured import Parsed, parse_json
from libs.llm.types import Answer, AnswerStatus, PromptVersion
from libs.replay.difference import Outcome, outcome_of
from libs.replay.originals import OriginalCall, OriginalForecast


def as_then(registry: Registry, call: OriginalCall) -> PromptVersion | None:
    """The version a call was made with; None where it is gone or does not say any more what it said."""
    try:
        prompt = registry.version(call.prompt_key, call.prompt_version)
    except UnknownPrompt:
        return None
    return prompt if prompt.sha256 == call.prompt_hash else None


def answer_then(call: OriginalCall, registry: Registry) -> Answer:
    """The answer of a call as it was given. A call that brought no reply is unavailable, whatever ended it."""
    match call.status:
        case "ok":
            return answer_of(call, "ok", value=value_then(call, registry))
        case "invalid":
            return answer_of(call, "invalid", error=call.error)
        case _:
            return answer_of(call, "unavailable", error=call.error)


def value_then(call: OriginalCall, registry: Registry) -> Any:
    """The value of a reply that was valid when it came. Values are not stored, so it is read again.

    Where the version is gone, or today's parser takes the reply no more, an object is taken for one and all else for
    text.
    """
    prompt = as_then(registry, call)
    if prompt is not None:
        parsed = registry.output(prompt).parse(call.reply, finish_reason=call.finish_reason)
        if isinstance(parsed, Parsed):
            return parsed.value
    read = parse_json(call.reply)
    value: Any = read.value if isinstance(read, Parsed) else None
    return value if isinstance(value, dict) else call.reply  # pyright: ignore[reportUnknownVariableType] - any JSON


def answer_now(call: OriginalCall, registry: Registry) -> Answer:
    """The recorded reply as it would be judged if it came now; as it was then, where the version is gone."""
    prompt = as_then(registry, call)
    if prompt is None or call.status not in {"ok", "invalid"}:
        return answer_then(call, registry)
    parsed = registry.output(prompt).parse(call.reply, finish_reason=call.finish_reason)
    if isinstance(parsed, Parsed):
        return valid_as(call.prompt_key, answer_of(call, "ok", value=parsed.value))
    return answer_of(call, "invalid", error=str(parsed))


def valid_as(key: str, answer: Answer) -> Answer:
    """The answer itself, or as invalid where it is a policy's and holds no decision."""
    checked, _ = decided(answer) if key == POLICY else (answer, None)
    return answer if checked is None else checked


def outcome_then(call: OriginalCall, forecast: OriginalForecast | None, registry: Registry) -> Outcome:
    """What a call came to. Where its forecast names it, decision and rules are those that stand there."""
    policy = call.prompt_key == POLICY
    found = outcome_of(answer_then(call, registry), policy=policy)
    if forecast is None:
        return found
    block = forecast.llm[POLICY]
    decision = block["decision"] if forecast.stands and policy else None
    stored = found.decision if decision is None else read_decision(decision)
    return Outcome(found.text, found.value, stored, block["rules"]["allow"])


def answer_of(call: OriginalCall, status: AnswerStatus, *, value: Any = None, error: str | None = None) -> Answer:
    """A call's reply as an answer."""
    return Answer(
        status=status,
        text=call.reply,
        value=value,
        error=error,
        cached=True,
        call_id=call.id,
        model=call.model,
        upstream=call.upstream,
        prompt_key=call.prompt_key,
        prompt_version=call.prompt_version,
        prompt_hash=call.prompt_hash,
        arm="",
    )
