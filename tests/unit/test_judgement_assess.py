"""The judgement path over a client that answers in the process."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.judgement.assess import Manner, assess, decided, parse_decision, rationale_text, reassess
from libs.judgement.inputs import prompt_inputs
from libs.judgement.record import features_llm
from libs.judgement.types import Judgement
from libs.llm.errors import PromptError
from libs.llm.experiments import Unit
from libs.llm.types import Answer
from libs.upstreams.types import Priority, TimeLimits
from tests.unit.judgement_cases import AS_OF, RULES, answer, good_inputs, json_values

ALLOW: dict[str, Any] = {"allow": True, "reasons": [], "flags": []}
DENY = {"allow": False, "reasons": ["ADVERSE_NEWS"], "flags": []}
STRICT = "file:prices.csv"
codes = st.lists(st.text(max_size=5), max_size=2)
decisions = st.fixed_dictionaries({"allow": st.booleans(), "reasons": codes, "flags": codes})
FORECAST_ID = UUID("019aa000-0000-7000-8000-00000000000f")


@dataclass
class Desk:
    """A client that answers each prompt with what it was given: an answer, or an exception to raise."""

    rationale: Answer | Exception = field(default_factory=lambda: answer("rationale", {"text": "Up to 101, for once."}))
    policy: Answer | Exception = field(default_factory=lambda: answer("policy", ALLOW, text=json.dumps(ALLOW)))
    asked: list[tuple[str, Mapping[str, object], dict[str, Any]]] = field(default_factory=list[Any])
    together: int = 0
    most_together: int = 0

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
        """Answer as told."""
        how = {"unit": unit, "version": version, "priority": priority, "upstream": upstream, "limits": limits}
        self.asked.append((key, inputs, {**how, "use_cache": use_cache, "subject": subject}))
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        given = self.rationale if key == "rationale" else self.policy
        if isinstance(given, Exception):
            raise given
        return given


async def judged(desk: Desk, **changes: Any) -> Judgement:
    """Good inputs, judged on a strict feed."""
    arguments: dict[str, Any] = {"client": desk, "rules": RULES, "feed": STRICT, "forecast_id": FORECAST_ID, **changes}
    return await assess(arguments.pop("inputs", good_inputs()), **arguments)


async def test_both_are_asked_together_about_the_same_inputs() -> None:
    desk = Desk()
    judgement = await judged(desk)
    assert desk.most_together == 2
    assert [key for key, _, _ in desk.asked] == ["rationale", "policy"]
    variables = prompt_inputs(good_inputs(), RULES)
    assert all(inputs == variables for _, inputs, _ in desk.asked)
    how = desk.asked[1][2]
    assert how["unit"] == Unit("AAPL", AS_OF, FORECAST_ID)
    assert how["subject"] == "AAPL 2012-11-20"
    assert how["use_cache"]
    assert [entry[2]["priority"] for entry in desk.asked] == [Priority.RATIONALE, Priority.POLICY]
    assert judgement.decision is not None
    assert judgement.decision.allow
    assert judgement.rules.allow
    assert judgement.ungrounded_numbers == ()


async def test_the_manner_of_asking_is_passed_on() -> None:
    desk = Desk()
    limits = TimeLimits(total_s=3)
    manner = Manner(
        versions={"policy": "1.1.0"}, upstream="other", limits=limits, use_cache=False, priority=Priority.BATCH
    )
    await judged(desk, manner=manner, feed="replay:1")
    (_, variables, rationale), (_, _, policy) = desk.asked
    assert (rationale["version"], policy["version"]) == (None, "1.1.0")
    for how in (rationale, policy):
        assert (how["upstream"], how["limits"], how["use_cache"]) == ("other", limits, False)
        assert how["priority"] is Priority.BATCH
    assert "off" in str(variables["rules"])


@pytest.mark.parametrize("failed", ["rationale", "policy"])
@pytest.mark.parametrize("error", [PromptError("no such variable"), RuntimeError("a bug")])
async def test_a_fault_of_one_leaves_the_other_alone(failed: str, error: Exception) -> None:
    desk = Desk(rationale=error) if failed == "rationale" else Desk(policy=error)
    judgement = await judged(desk)
    fine, broken = ("policy", "rationale") if failed == "rationale" else ("rationale", "policy")
    assert getattr(judgement, fine) == getattr(desk, fine)
    assert getattr(judgement, f"{fine}_error") is None
    assert getattr(judgement, broken) is None
    assert getattr(judgement, f"{broken}_error") == f"{type(error).__name__}: {error}"
    assert (judgement.decision is None) is (failed == "policy")


async def test_a_model_that_is_down_leaves_rules_and_no_decision() -> None:
    down = answer("policy", None, text="", status="unavailable", error="connect_failed")
    judgement = await judged(Desk(policy=down, rationale=replace(down, prompt_key="rationale")))
    assert judgement.policy == down
    assert judgement.decision is None
    assert judgement.rules.allow


async def test_cancelling_reaches_both_calls() -> None:
    ended: list[str] = []
    both = asyncio.Event()

    class Slow(Desk):
        """A client that never answers."""

        async def ask(self, key: str, inputs: Mapping[str, object], **how: Any) -> Answer:
            """Wait for ever."""
            del inputs, how
            self.together += 1
            if self.together == 2:
                both.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(key)
            raise AssertionError

    task = asyncio.create_task(judged(Slow()))
    await both.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == ["policy", "rationale"]


async def test_the_model_can_only_narrow() -> None:
    risky = good_inputs(coverage_pct=10.0)
    judgement = await judged(Desk(), inputs=risky)
    assert judgement.decision is not None
    assert judgement.decision.allow
    assert judgement.rules.reasons == ("COVERAGE",)


@given(json_values | decisions, st.floats(0, 100), st.booleans())
def test_whatever_the_model_says_the_rules_say_the_same(value: Any, coverage: float, short: bool) -> None:
    signal = replace(good_inputs().signal, side="sell" if short else "buy")
    inputs = good_inputs(coverage_pct=coverage, signal=signal)
    judgement = asyncio.run(judged(Desk(policy=answer("policy", value)), inputs=inputs))
    assert judgement.rules == RULES.judge(inputs, STRICT)
    if features_llm(judgement, True)["policy"]["shadow_allow"]:
        assert judgement.rules.allow
        assert value["allow"] is True


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "allow",
        [],
        {},
        {"allow": "false", "reasons": [], "flags": []},
        {"allow": 1, "reasons": [], "flags": []},
        {"allow": None, "reasons": [], "flags": []},
        {"allow": True, "reasons": []},
        {"allow": True, "reasons": [], "flags": [], "note": ""},
        {"allow": True, "reasons": "EARNINGS", "flags": []},
        {"allow": True, "reasons": [1], "flags": []},
        {"allow": True, "reasons": [], "flags": None},
    ],
)
async def test_what_is_no_decision_is_invalid(value: Any) -> None:
    judgement = await judged(Desk(policy=answer("policy", value, text="kept")))
    assert judgement.decision is None
    assert judgement.policy is not None
    assert judgement.policy.status == "invalid"
    assert judgement.policy.text == "kept"
    assert judgement.policy.error


@given(json_values | decisions)
def test_only_a_decision_is_read_as_one(value: Any) -> None:
    decision = parse_decision(value)
    if decision is not None:
        again = {"allow": decision.allow, "reasons": list(decision.reasons), "flags": list(decision.flags)}
        assert again == value
        assert isinstance(value["allow"], bool)


@pytest.mark.parametrize("status", ["invalid", "unavailable"])
def test_a_value_without_status_ok_decides_nothing(status: Any) -> None:
    given_answer = answer("policy", ALLOW, status=status, error="x")
    assert decided(given_answer) == (given_answer, None)


def test_the_rationale_is_plain_text() -> None:
    assert rationale_text(answer("rationale", {"text": "Up."}, text='{"text": "Up."}')) == "Up."
    assert rationale_text(answer("rationale", "Up.", text="Up.")) == "Up."
    assert rationale_text(answer("rationale", None, text='{"te', status="invalid")) == '{"te'
    assert rationale_text(None) == ""


async def test_numbers_from_nowhere_are_flagged() -> None:
    desk = Desk(rationale=answer("rationale", {"text": "AAPL goes from 100 to 101, or to 250.5 by 2013."}))
    assert (await judged(desk)).ungrounded_numbers == ("250.5", "2013")


async def test_judging_again_asks_policy_alone_and_keeps_the_rationale() -> None:
    first = await judged(Desk())
    desk = Desk(policy=answer("policy", DENY, cached=True), rationale=RuntimeError("must not be asked"))
    stricter = replace(RULES, thresholds=RULES.thresholds.model_copy(update={"earnings_days": 50}))
    again = await reassess(first, client=desk, rules=stricter, feed=STRICT, forecast_id=FORECAST_ID)
    assert [key for key, _, _ in desk.asked] == ["policy"]
    assert desk.asked[0][2]["use_cache"]
    assert again.rationale == first.rationale
    assert again.ungrounded_numbers == first.ungrounded_numbers
    assert again.decision is not None
    assert not again.decision.allow
    assert again.rules.reasons == ("EARNINGS",)


async def test_a_fault_while_judging_again_leaves_no_decision() -> None:
    first = await judged(Desk())
    again = await reassess(first, client=Desk(policy=RuntimeError("a bug")), rules=RULES, feed=STRICT)
    assert (again.policy, again.decision, again.policy_error) == (None, None, "RuntimeError: a bug")
    healed = await reassess(again, client=Desk(), rules=RULES, feed=STRICT)
    assert healed.decision is not None
    assert healed.policy_error is None
