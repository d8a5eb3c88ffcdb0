"""How judging goes, for the log: one line per second at most, however many forecasts are judged."""

import asyncio
from collections import Counter

import structlog

from libs.judgement.types import Judgement

EVERY_S = 1.0

log = structlog.get_logger(__name__)


def policy_status(judgement: Judgement) -> str:
    """The status of the policy answer; "skipped" where none came about."""
    return "skipped" if judgement.policy is None else judgement.policy.status


def error_code(judgement: Judgement) -> str:
    """What the policy answer failed with, without the particulars, which may quote a reply: `breaker_open`."""
    error = judgement.policy_error if judgement.policy is None else judgement.policy.error
    return (error or "unknown").partition(":")[0]


class Tally:
    """Counts judgements by the status of their policy answer, and says the counts a second after the first of them."""

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def count(self, judgement: Judgement) -> None:
        """Take a judgement as the model's answers left it. Call it inside a running loop."""
        status = policy_status(judgement)
        self._counts[status] += 1
        if status != "ok":
            self._errors[error_code(judgement)] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self.say)

    def say(self) -> None:
        """One line for what was counted since the last, if anything: a warning where a verdict is missing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._counts:
            return
        told = {status: self._counts[status] for status in ("ok", "invalid", "unavailable")}
        others = {status: count for status, count in self._counts.items() if status not in told}
        if self._errors:
            log.warning("forecasts_judged", **told, **others, most_frequent_error=self._errors.most_common(1)[0][0])
        else:
            log.info("forecasts_judged", **told, **others)
        self._counts.clear()
        self._errors.clear()
