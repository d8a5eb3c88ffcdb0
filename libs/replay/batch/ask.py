"""Asking one stored decision again: the way of the forecast loop, with the version pinned.

The recorded inputs, today's rules and templates; the lowest priority; past the reply cache.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from libs.judgement.assess import POLICY, USUAL, case_of, rationale_text
from libs.judgement.record import RecordError, judgement_from_record
from libs.judgement.rules import Rules
from libs.judgement.types import Judgement
from libs.llm.client import Client
from libs.llm.errors import PromptError, UnknownPrompt
from libs.llm.prompts import PromptSource
from libs.llm.structured import ungrounded_numbers
from libs.replay.batch.held import Original, ReplayRow, call_id_of
from libs.replay.batch.rows import Batch
from libs.replay.difference import Outcome, flip, outcome_of
from libs.upstreams.types import Priority, TimeLimits

LONGEST_ERROR = 300
UPSTREAM = "lexi"
NEVER = re.compile(
    r"prompt_too_long:|refused: (?:answered (?!401|403|404|408|409|425|429)4\d\d\b|the engine sent an error)"
)
"""How the error of an answer begins that will not come however often it is asked for: the request's own fault.

Another key, another model's name or a quieter hour may mend those that are left out. Within a stream an error is called
a refusal only where the engine says that the request is to blame.
"""


class BatchFailed(Exception):
    """The batch cannot go on; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait between tries while the model gives no answers, and when to give up; seconds."""

    first_s: float = 1.0
    longest_s: float = 30.0
    give_up_s: float = 6 * 3600.0
    last_few_s: float = 600.0
    """After how long without an answer the last few decisions of a batch are given up."""
    version_s: float = 30.0
    """How long a version may be missing, or say something else, before the batch fails: files change one by one."""


@dataclass(frozen=True, slots=True)
class Road:
    """How a batch reaches the model.

    `places` is this process's share of the upstream's slots as it is now, `model` the name of the model whose answers
    count.
    """

    client: Client
    prompts: PromptSource
    rules: Rules
    limits: TimeLimits
    places: Callable[[], int]
    model: Callable[[], str]
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The model gave none."""

    error: str


def patient(limits: TimeLimits) -> TimeLimits:
    """Limits of a call that waits behind everybody: an engine holds the least urgent back without a word, also in the
    middle of an answer.
    """
    return replace(
        limits,
        first_token_s=max(limits.first_token_s, 120.0),
        idle_s=max(limits.idle_s, 60.0),
        total_s=max(limits.total_s, 240.0),
    )


def version_problem(batch: Batch, prompts: PromptSource) -> str | None:
    """Why the version that was asked for cannot be asked here; None when it can."""
    registry, name = prompts.now.registry, f"{batch.prompt_key} {batch.prompt_version}"
    try:
        found = registry.version(batch.prompt_key, batch.prompt_version)
    except UnknownPrompt:
        return f"{name} is not in the prompts' file any more; put it back, and ask for the batch again"
    if found.sha256 != batch.prompt_hash:
        return (
            f"{name} does not say any more what it said when the batch was asked for ({batch.prompt_hash[:12]} then, "
            f"{found.sha256[:12]} now); ask for a new batch"
        )
    return None


async def ask_again(original: Original, batch: Batch, road: Road) -> ReplayRow | NoAnswer:
    """Put one stored decision to the batch's version.

    What cannot be asked for its own sake (a record that cannot be read, inputs that do not fit the version) is a row
    that says so. Raises `BatchFailed` where the version changed meanwhile.
    """
    if (problem := version_problem(batch, road.prompts)) is not None:
        raise BatchFailed(problem)
    key = batch.prompt_key
    try:
        judgement = judgement_from_record(original.llm)
    except RecordError as error:
        return refused(original, Outcome("", None), str(error))
    inputs, feed = judgement.inputs, original.feed
    case = case_of(
        inputs, client=road.client, rules=road.rules, feed=feed, forecast_id=original.forecast_id, manner=USUAL
    )
    before = _before(judgement, key)
    try:
        answer = await road.client.ask(
            key,
            case.variables,
            version=batch.prompt_version,
            priority=Priority.BATCH,
            upstream=UPSTREAM,
            limits=road.limits,
            use_cache=False,
            subject=case.subject,
            replay_of=call_id_of(original.llm, key),
        )
    except PromptError as error:
        return refused(original, before, str(error), call_id=call_id_of(original.llm, key))
    if answer.status == "unavailable":
        error = answer.error or "no reason given"
        never = answer.upstream == UPSTREAM and NEVER.match(error)
        return unanswered(original, batch, error) if never else NoAnswer(error)
    if answer.model != road.model():
        return NoAnswer(f"{answer.model} answered in its place, which says nothing about {road.model()}")
    rules = road.rules.judge(inputs, feed)
    after = outcome_of(answer, policy=key == POLICY, rules_allow=rules.allow)
    status = "invalid" if answer.status == "invalid" or (key == POLICY and after.decision is None) else "ok"
    prose = None if key == POLICY else rationale_text(answer)
    invented = None if prose is None else len(ungrounded_numbers(prose, case.variables))
    said = after.value if prose is None else prose  # of a rationale only its prose is kept with the forecast
    return ReplayRow(
        original=original,
        call_id=call_id_of(original.llm, key),
        new_call_id=answer.call_id,
        status=status,
        error=answer.error,
        before=_document(before, original, key, invented=None if key == POLICY else len(judgement.ungrounded_numbers)),
        after=after.document() | {"invented": invented, "same": status == "ok" and before.value == said},
        flip=flip(before, after) if key == POLICY else None,
        total_ms=answer.total_ms,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
    )


def _before(judgement: Judgement, key: str) -> Outcome:
    """What the stored answer came to."""
    answer = judgement.policy if key == POLICY else judgement.rationale
    return outcome_of(answer, policy=key == POLICY, rules_allow=judgement.rules.allow)


def _document(before: Outcome, original: Original, key: str, *, invented: int | None = None) -> dict[str, Any]:
    """`replays.before`, with what the report compares beside it."""
    spent = original.spent
    cost = None if spent is None else {"total_ms": spent.total_ms, "tokens_in": spent.tokens_in}
    return before.document() | {
        "status": original.llm[key]["status"],
        "invented": invented,
        "spent": None if spent is None or cost is None else cost | {"tokens_out": spent.tokens_out},
    }


def refused(original: Original, before: Outcome, error: str, *, call_id: UUID | None = None) -> ReplayRow:
    """A row that says why our own side could not ask."""
    return ReplayRow(
        original=original,
        call_id=call_id,
        new_call_id=None,
        status="refused",
        error=error[:LONGEST_ERROR],
        before=before.document(),
        after=Outcome("", None).document(),
        flip=None,
    )


def unanswered(original: Original, batch: Batch, error: str) -> ReplayRow:
    """A row that says why the model gave no answer, however often it was asked."""
    before = _before(judgement_from_record(original.llm), batch.prompt_key)
    row = refused(original, before, error, call_id=call_id_of(original.llm, batch.prompt_key))
    return replace(row, status="unavailable")
