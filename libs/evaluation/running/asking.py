"""Asking one item along the way that forecasts take: the production inputs, render, client, parse and rules.

Only the version is pinned, the priority the lowest, and a repeat is never answered from the cache.
"""

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.running.plan import Pinned
from libs.evaluation.running.row import Row, RowStatus
from libs.judgement.assess import POLICY, RATIONALE, Asked, Asker, Case, Manner, case_of, decided, rationale_text
from libs.judgement.rules import Rules
from libs.judgement.types import Decision
from libs.llm.structured import ungrounded_numbers
from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits

LEXI: Final = "lexi"
ELSEWHERE: Final = "answered_elsewhere"
OUR_SIDE: Final = re.compile(
    r"prompt_too_long:|refused: (?:answered (?!401|403|404|408|409|425|429)4\d\d\b|the engine sent an error)"
)
"""How an error begins that says that this request cannot be answered, however often it is asked."""
NOT_THERE: Final = re.compile(
    rf"connect_failed:|breaker_open:|unknown_upstream:|no_slot: the role |{ELSEWHERE}:|"
    r"refused: answered (?:401|403|404)\b"
)
"""How an error begins that says nothing about the item: the model is not there, or not for us."""
BROKEN: Final = re.compile(r"broken_stream:")
"""How an error begins of a server that took the question and broke off: it went away, or cannot bear the question."""
NOT_NOW: Final = re.compile(r"overloaded:|refused: answered (?:429|502|503)\b")
"""How an error begins that comes from the moment: too much at once, or a server that starts."""


class VersionChanged(Exception):
    """A version is not what the run was planned with: its answers would not belong to one another."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks items. `limits` None are the client's own.

    `model` names the model whose answers count: one of a fallback says nothing about it. Without it the answers of the
    upstream `lexi` count.
    """

    client: Asker
    rules: Rules
    limits: TimeLimits | None
    use_cache: bool
    model: Callable[[], str] | None = None
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
        """Put one case to one version. A failure of the model is a row too.

        Raises `VersionChanged` where the version is gone or says something else than the plan.
        """
        manner = Manner(
            versions={pinned.prompt: pinned.version},
            limits=self.limits,
            use_cache=self.use_cache and repeat == 0,
            priority=Priority.BATCH,
        )
        judged = case_of(
            case.inputs, client=self.client, rules=self.rules, feed=case.feed, forecast_id=None, manner=manner
        )
        asked = await judged.ask(pinned.prompt)
        check_version(asked, pinned)
        answer, decision = decided(asked.answer) if pinned.prompt == POLICY else (asked.answer, None)
        return self._row(
            case, pinned, item=item, repeat=repeat, asked=Asked(answer, asked.error), judged=judged, decision=decision
        )

    def _row(
        self,
        case: EvalCase,
        pinned: Pinned,
        *,
        item: int,
        repeat: int,
        asked: Asked,
        judged: Case,
        decision: Decision | None,
    ) -> Row:
        rules = self.rules.judge(case.inputs, case.feed)
        answer = asked.answer
        status, error = self._outcome(asked)
        prose = rationale_text(answer) if pinned.prompt == RATIONALE and answer is not None and answer.text else None
        return Row(
            item=item,
            try_=1,
            case=case.id,
            twin=case.twin,
            twin_of=case.twin_of,
            attack=case.attack,
            ticker=case.ticker,
            day=case.day.isoformat(),
            as_of=case.as_of.isoformat(),
            prompt=pinned.prompt,
            version=pinned.version,
            hash=pinned.hash,
            repeat=repeat,
            status=status,
            error=error,
            first_error=None if answer is None else answer.first_error,
            cached=answer is not None and answer.cached,
            text="" if answer is None else answer.text,
            allow=None if decision is None else decision.allow,
            reasons=() if decision is None else decision.reasons,
            flags=() if decision is None else decision.flags,
            rules_allow=rules.allow,
            rules_reasons=rules.reasons,
            ungrounded=None if prose is None else ungrounded_numbers(prose, judged.variables),
            side=case.inputs.signal.side,
            target=case.target,
            made=case.made,
            won=case.won,
            queue_ms=0.0 if answer is None else answer.queue_ms,
            first_queue_ms=0.0 if answer is None else answer.first_queue_ms,
            first_token_ms=0.0 if answer is None else answer.first_token_ms,
            total_ms=0.0 if answer is None else answer.total_ms,
            late_ms=0.0,
            tokens_in=0 if answer is None else answer.tokens_in,
            tokens_out=0 if answer is None else answer.tokens_out,
            model="" if answer is None else answer.model,
            call_id="" if answer is None else str(answer.call_id),
            at=datetime.now(UTC).isoformat(),
            worker=self.worker,
        )

    def _outcome(self, asked: Asked) -> tuple[RowStatus, str | None]:
        """The row's status and error."""
        answer = asked.answer
        if answer is None:
            return "refused", asked.error
        if answer.status == "unavailable":
            error = answer.error or "no reason given"
            return ("refused" if OUR_SIDE.match(error) else "unavailable"), error
        if not self._counts(answer):
            return "unavailable", f"{ELSEWHERE}: {answer.model} ({answer.upstream}) answered in its place"
        return answer.status, answer.error

    def _counts(self, answer: Answer) -> bool:
        return answer.upstream == LEXI if self.model is None else answer.model == self.model()


def check_version(asked: Asked, pinned: Pinned) -> None:
    """Raise `VersionChanged` where the version that was asked is not the planned one."""
    if asked.answer is None and (asked.error or "").startswith("UnknownPrompt:"):
        raise VersionChanged(
            f"{pinned} is not in the prompts' file any more; put it back and resume, or begin a new run"
        )
    if asked.answer is not None and asked.answer.prompt_hash != pinned.hash:
        raise VersionChanged(
            f"{pinned} does not say any more what it said when the run was planned ({pinned.hash[:12]} then, "
            f"{asked.answer.prompt_hash[:12]} now); put it back and resume, or begin a new run"
        )


def is_absence(row: Row, *, open_loop: bool) -> bool:
    """Whether the row says nothing about its item, which is to be asked again.

    Under a rate a server that has too much to do, or breaks off, is what is measured.
    """
    if row.status != "unavailable":
        return False
    error = row.error or ""
    return any(pattern.match(error) for pattern in ((NOT_THERE,) if open_loop else (NOT_THERE, NOT_NOW, BROKEN)))


def is_broken(row: Row) -> bool:
    """Whether the server broke off, for which the item itself may be the reason."""
    return row.status == "unavailable" and BROKEN.match(row.error or "") is not None
