"""`forecasts.features -> 'llm'`, version 1: a judgement as JSON, and back.

What is written is JSON that Postgres takes as it is: no NaN, and in texts a NUL or a lone surrogate, which `jsonb`
refuses, becomes U+FFFD. Reading back gives the same inputs, so that replay and evaluation judge what was judged.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from uuid import UUID

from libs.judgement.assess import POLICY, RATIONALE, rationale_text
from libs.judgement.types import Decision, Fact, Inputs, Judgement, RulesVerdict, Side, Signal
from libs.llm.call_record import storable_text
from libs.llm.types import Answer, AnswerStatus

VERSION: Final = 1
SKIPPED: Final = "skipped"
"""Status where no call came about; the error beside it says why."""
PENDING: Final = "pending"
"""Error of a row whose numbers are stored and whose calls have not ended yet."""

Json: TypeAlias = dict[str, Any]


class RecordError(Exception):
    """A stored record cannot be read back; the message names the entry."""


def features_llm(judgement: Judgement, shadow_mode: bool) -> Json:
    """The record of a judgement. `shadow_allow` is what policy and rules together say, acted on or not."""
    decision, rules = judgement.decision, judgement.rules
    record: Json = {
        "v": VERSION,
        "rationale": {
            "text": rationale_text(judgement.rationale),
            **call_block(judgement.rationale, RATIONALE, judgement.rationale_error),
            "ungrounded_numbers": list(judgement.ungrounded_numbers),
        },
        "policy": {
            "raw": "" if judgement.policy is None else judgement.policy.text,
            "decision": None if decision is None else decision_block(decision),
            **call_block(judgement.policy, POLICY, judgement.policy_error),
            "shadow_mode": shadow_mode,
            "shadow_allow": decision is not None and decision.allow and rules.allow,
            "rules": {"allow": rules.allow, "reasons": list(rules.reasons)},
        },
        "inputs": inputs_block(judgement.inputs),
    }
    return storable(record)


def pending(inputs: Inputs, *, rules: RulesVerdict, shadow_mode: bool) -> Json:
    """The record of a row whose numbers are stored before the model has answered: nothing is allowed yet."""
    waiting = Judgement(
        inputs=inputs,
        rationale=None,
        policy=None,
        decision=None,
        rules=rules,
        rationale_error=PENDING,
        policy_error=PENDING,
    )
    return features_llm(waiting, shadow_mode)


def call_block(answer: Answer | None, key: str, error: str | None) -> Json:
    """What is kept of the call behind a rationale or a policy."""
    if answer is None:
        unknown = dict.fromkeys(("call_id", "model", "prompt_version", "prompt_hash", "arm"))
        return {"status": SKIPPED, "cached": False, "prompt_key": key, **unknown, "error": error}
    return {
        "status": answer.status,
        "cached": answer.cached,
        "call_id": str(answer.call_id),
        "model": answer.model,
        "prompt_key": answer.prompt_key,
        "prompt_version": answer.prompt_version,
        "prompt_hash": answer.prompt_hash,
        "arm": answer.arm,
        "error": answer.error,
    }


def decision_block(decision: Decision) -> Json:
    """A decision as JSON."""
    return {"allow": decision.allow, "reasons": list(decision.reasons), "flags": list(decision.flags)}


def inputs_block(inputs: Inputs) -> Json:
    """Inputs as JSON."""
    signal = inputs.signal
    return {
        "ticker": inputs.ticker,
        "horizon": inputs.horizon,
        "as_of": written(inputs.as_of),
        "signal": {
            "side": signal.side,
            "last_price": signal.last_price,
            "mean": signal.mean,
            "lower": signal.lower,
            "upper": signal.upper,
            "expected_return": signal.expected_return,
        },
        "factors": dict(inputs.factors),
        "headlines": list(inputs.headlines),
        "liquidity_usd": inputs.liquidity_usd,
        "coverage_pct": inputs.coverage_pct,
        "earnings_in_days": inputs.earnings_in_days,
        "facts": {
            name: {"value": fact.value, "as_of": written(fact.as_of), "source": fact.source}
            for name, fact in inputs.facts.items()
        },
    }


def written(moment: datetime) -> str:
    """A moment in UTC, ISO 8601."""
    return moment.astimezone(UTC).isoformat()


def storable(value: Any) -> Any:
    """The same JSON as Postgres can keep it: non-finite numbers become null, texts lose what `jsonb` refuses."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {storable_text(name): storable(entry) for name, entry in entries.items()}
    if isinstance(value, list | tuple):
        return [storable(entry) for entry in cast("list[Any]", value)]
    return value


def inputs_from_record(record: Mapping[str, Any]) -> Inputs:
    """The inputs of a stored record (`features -> 'llm'`). Raises `RecordError` naming what is missing or wrong."""
    version = record.get("v")
    if version != VERSION:
        raise RecordError(f"v: this is version {version!r}, only {VERSION} can be read")
    try:
        return read_inputs(record["inputs"])
    except KeyError as error:
        raise RecordError(f"inputs: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(f"inputs: {error}") from error


def read_inputs(block: Mapping[str, Any]) -> Inputs:
    """Inputs from their JSON. Numbers that the database wrote without a fraction are floats again."""
    signal = block["signal"]
    if signal["side"] not in get_args(Side):
        raise ValueError(f"signal.side: {signal['side']!r} is no side")
    prices = {name: float(signal[name]) for name in ("last_price", "mean", "lower", "upper", "expected_return")}
    return Inputs(
        ticker=block["ticker"],
        horizon=block["horizon"],
        as_of=moment_of(block["as_of"]),
        signal=Signal(side=signal["side"], **prices),
        factors={name: float(score) for name, score in block["factors"].items() if score is not None},
        liquidity_usd=optional_float(block["liquidity_usd"]),
        coverage_pct=optional_float(block["coverage_pct"]),
        headlines=tuple(block["headlines"]),
        facts={name: read_fact(name, fact) for name, fact in block["facts"].items()},
        earnings_in_days=block["earnings_in_days"],
    )


def read_fact(name: str, block: Mapping[str, Any]) -> Fact:
    """One fact from its JSON."""
    return Fact(name=name, value=block["value"], as_of=moment_of(block["as_of"]), source=block["source"])


def moment_of(text: str) -> datetime:
    """A written moment; one without a zone is refused."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment.astimezone(UTC)


def optional_float(value: Any) -> float | None:
    """A number or None."""
    return None if value is None else float(value)


def judgement_from_record(record: Mapping[str, Any]) -> Judgement:
    """A stored judgement, for judging again: everything but what only the call's own row keeps (tokens, times).

    Raises `RecordError`. The value of the policy answer is its decision; that of the rationale is its text.
    """
    inputs = inputs_from_record(record)
    try:
        rationale, policy = record["rationale"], record["policy"]
        decision = policy["decision"]
        return Judgement(
            inputs=inputs,
            rationale=read_answer(rationale, text=rationale["text"], value=rationale["text"]),
            policy=read_answer(policy, text=policy["raw"], value=decision),
            decision=None if decision is None else read_decision(decision),
            rules=RulesVerdict(allow=policy["rules"]["allow"], reasons=tuple(policy["rules"]["reasons"])),
            ungrounded_numbers=tuple(rationale["ungrounded_numbers"]),
            rationale_error=rationale["error"] if rationale["status"] == SKIPPED else None,
            policy_error=policy["error"] if policy["status"] == SKIPPED else None,
        )
    except KeyError as error:
        raise RecordError(f"{error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RecordError(str(error)) from error


def read_decision(block: Mapping[str, Any]) -> Decision:
    """A decision from its JSON."""
    return Decision(allow=block["allow"], reasons=tuple(block["reasons"]), flags=tuple(block["flags"]))


def read_answer(block: Mapping[str, Any], *, text: str, value: Any) -> Answer | None:
    """An answer from its block; None where no call came about. The upstream's entry and the tokens are not kept."""
    status: AnswerStatus | Literal["skipped"] = block["status"]
    if status == SKIPPED:
        return None
    if status not in get_args(AnswerStatus):
        raise ValueError(f"status: {status!r} is unknown")
    return Answer(
        status=status,
        text=text,
        value=value if status == "ok" else None,
        error=block["error"],
        cached=block["cached"],
        call_id=UUID(block["call_id"]),
        model=block["model"],
        upstream="",
        prompt_key=block["prompt_key"],
        prompt_version=block["prompt_version"],
        prompt_hash=block["prompt_hash"],
        arm=block["arm"],
    )
