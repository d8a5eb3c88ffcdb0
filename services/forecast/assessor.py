"""From a stored forecast to what is written about it: the judgement path, and when to take it again."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

import structlog
from prometheus_client import Counter

from libs.exposures.record import Noted, note
from libs.judgement.assess import POLICY, RATIONALE, Asker, assess, reassess
from libs.judgement.record import features_llm
from libs.judgement.rules import Rules
from libs.judgement.types import Inputs, Judgement, PriceForecast
from services.forecast.judging import Case, Finished
from services.forecast.tally import Tally, policy_status

RETRY_UNAVAILABLE_S = 60.0
"""When the model could not be had, ask again after this long, or half the decision's time where that is shorter."""
SUPERSEDED = "superseded by a newer tick"
FAULT = "internal error"

JUDGED = Counter("lexi_forecast_judged_total", "Forecasts judged, by the status of the policy answer", ["status"])
FAILED = Counter("lexi_forecast_judging_failed_total", "Judgements that failed through a fault of our own")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Standing:
    """The newest forecast of a ticker, its last judgement, and when it is judged again (`time.monotonic`)."""

    id: UUID
    inputs: Inputs
    prices: PriceForecast
    judgement: Judgement | None
    due: float


class Assessor:
    """Judges cases of one run of a feed and remembers, per ticker, the newest forecast."""

    def __init__(self, *, client: Asker, rules: Rules, decision_ttl_s: float) -> None:
        self._client = client
        self._rules = rules
        self._half_life_s = decision_ttl_s / 2
        self._standing: dict[str, Standing] = {}
        self.feed = ""
        self.tally = Tally()

    def follow(
        self, case: Case, prices: PriceForecast, *, judgement: Judgement | None = None, age_s: float = 0.0
    ) -> None:
        """Take a case as the newest of its ticker; `age_s` is how long ago it was judged."""
        due = time.monotonic() + self._half_life_s - age_s
        self._standing[case.inputs.ticker] = Standing(case.id, case.inputs, prices, judgement, due)

    def forget(self) -> None:
        """A new run begins: nothing of the last one is judged again."""
        self._standing.clear()

    def drop(self, ticker: str) -> None:
        """A ticker left the feed: it is not judged again."""
        self._standing.pop(ticker, None)

    def due(self) -> Iterator[Standing]:
        """Forecasts whose last judgement has reached half of its time."""
        now = time.monotonic()
        return (standing for standing in list(self._standing.values()) if standing.due <= now)

    def is_newest(self, standing: Standing) -> bool:
        """Whether nothing newer of the ticker has come meanwhile."""
        return self._standing.get(standing.inputs.ticker) is standing

    def again(self, standing: Standing, inputs: Inputs) -> Case:
        """The case to judge now that it is due: as before where the inputs are the same, else from the beginning."""
        before = standing.judgement
        whole = before is not None and before.rationale is not None and before.rationale.status != "unavailable"
        standing.due = time.monotonic() + min(self._half_life_s, RETRY_UNAVAILABLE_S)
        return Case(standing.id, inputs, before if whole and inputs == standing.inputs else None)

    async def judge(self, case: Case) -> Finished:
        """Judge a case. A fault of our own is logged and stored as such, so that no forecast stays silent."""
        try:
            judgement = await self._judgement(case)
        except Exception as error:
            FAILED.inc()
            log.exception("judging_failed", ticker=case.inputs.ticker, forecast_id=str(case.id))
            return self._unjudged(case, f"{FAULT}: {type(error).__name__}")
        status = policy_status(judgement)
        JUDGED.labels(status).inc()
        self.tally.count(judgement)
        kept = keep_decision(case.before, judgement)
        self._remember(case, kept, answered=status in {"ok", "invalid"})
        complete = kept is judgement
        return Finished(case, lambda shadow: features_llm(kept, shadow), complete, noted=first_word(case, judgement))

    async def _judgement(self, case: Case) -> Judgement:
        client, rules, feed = self._client, self._rules, self.feed
        if case.before is None:
            return await assess(case.inputs, client=client, rules=rules, feed=feed, forecast_id=case.id)
        return await reassess(case.before, client=client, rules=rules, feed=feed, forecast_id=case.id)

    def _remember(self, case: Case, judgement: Judgement, *, answered: bool) -> None:
        standing = self._standing.get(case.inputs.ticker)
        if standing is None or standing.id != case.id:
            return
        standing.inputs, standing.judgement = case.inputs, judgement
        wait = self._half_life_s if answered else min(self._half_life_s, RETRY_UNAVAILABLE_S)
        standing.due = time.monotonic() + wait

    def superseded(self, case: Case) -> Finished:
        """A case that a newer tick overtook before its turn came."""
        return self._unjudged(case, SUPERSEDED)

    def _unjudged(self, case: Case, reason: str) -> Finished:
        judgement = Judgement(
            inputs=case.inputs,
            rationale=None,
            policy=None,
            decision=None,
            rules=self._rules.judge(case.inputs, self.feed),
            rationale_error=reason,
            policy_error=reason,
        )
        noted = first_word(case, judgement)
        return Finished(case, lambda shadow: features_llm(judgement, shadow), complete=False, noted=noted)


def first_word(case: Case, judgement: Judgement) -> tuple[Noted, ...]:
    """What a first judgement says of the case's exposures; nothing where the case was judged before."""
    if case.before is not None:
        return ()
    rules, faults = judgement.rules, [judgement.rationale_error, judgement.policy_error]
    mine, its = (None if fault == SUPERSEDED else fault for fault in faults)
    found = (
        note(RATIONALE, case.id, answer=judgement.rationale, fault=mine),
        note(POLICY, case.id, answer=judgement.policy, decision=judgement.decision, rules_allow=rules.allow, fault=its),
    )
    return tuple(one for one in found if one is not None)


def keep_decision(before: Judgement | None, judgement: Judgement) -> Judgement:
    """The judgement to store. Where the model could not be asked again, the last decision stands, and keeps ageing."""
    if before is None or before.decision is None or policy_status(judgement) not in {"unavailable", "skipped"}:
        return judgement
    return replace(judgement, policy=before.policy, decision=before.decision, policy_error=before.policy_error)
