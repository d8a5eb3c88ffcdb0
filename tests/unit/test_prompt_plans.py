"""What promote and ramp would write, and what they refuse: from facts alone."""

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from libs.llm.commands.plans import Change, promotion, ramp, rollback
from libs.llm.commands.refusal import CommandRefused
from libs.llm.experiments import Unit, pick, point
from libs.llm.in_force import Ground
from libs.llm.registry import Registry
from tests.unit.plan_cases import (
    AT,
    EVALUATION,
    GROUND,
    KEY,
    VERSIONS,
    change,
    facts,
    plan_registry,
    released,
    row,
    two,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return plan_registry(tmp_path)


def test_a_promotion_gives_every_unit_the_version_and_ends_the_experiment(registry: Registry) -> None:
    prompt = released(registry, "1.1.0")
    for known in (facts(registry), facts(registry, row(1, "1.0.0", two(10))), facts(registry, buckets="verdict:1.2.0")):
        found = promotion(known, prompt, reason="")
        assert change(found) == ("1.1.0", ())
        assert "3 of 120 decisions flip." in str(found)
    said = promotion(facts(registry), released(registry, "1.0.0"), reason="")
    assert said == "verdict 1.0.0 is in force already and no experiment runs: nothing to do"
    control = promotion(facts(registry, row(1, "1.0.0", two(10)), replay=None), released(registry, "1.0.0"), reason="")
    assert change(control) == ("1.0.0", ()), "the end of an experiment needs no evidence for what is in force"


def test_a_draft_is_refused_whatever_the_reason(registry: Registry) -> None:
    draft = registry.version(KEY, "1.1.0")
    with pytest.raises(CommandRefused, match=r"is a draft.* release verdict 1\.1\.0"):
        promotion(facts(registry), draft, reason="it is urgent")
    with pytest.raises(CommandRefused, match=r"is a draft.* release verdict 1\.1\.0"):
        ramp(facts(registry), draft, 1, reason="it is urgent")


def test_without_a_replay_somebody_must_say_why(registry: Registry) -> None:
    prompt = released(registry, "1.1.0")
    known = facts(registry, replay=None)
    with pytest.raises(CommandRefused, match=r"can be neither replayed nor evaluated.*REASON"):
        promotion(known, prompt, reason="")
    policy = replace(prompt, key="policy")
    with pytest.raises(CommandRefused, match=r"make replay SINCE=… PROMPT=policy VERSION=1\.1\.0.*REASON"):
        promotion(known, policy, reason="")
    with pytest.raises(CommandRefused, match=rf"replay {UUID(int=9)} of policy 1\.1\.0 has not finished"):
        ramp(replace(known, open_replay=UUID(int=9)), policy, 5, reason="")
    assert "it is urgent (without a replay; evaluation " in str(promotion(known, policy, reason="it is urgent"))
    assert f"it is urgent (replay {UUID(int=7)}" in str(promotion(facts(registry), policy, reason="it is urgent"))


def test_a_promotion_asks_for_an_evaluation_that_passed_and_a_ramp_does_not(registry: Registry) -> None:
    known = facts(registry)
    prompt = replace(released(registry, "1.1.0"), key="policy")
    assert "validity is 0.998" in str(promotion(known, prompt, reason=""))
    missed = replace(EVALUATION, passed=False, sentences=("2 twins flip",))
    command = r'make eval-llm PROMPT=policy VERSION=1\.1\.0 FAIL_UNDER="answered=0\.9 validity=0\.9 flips=0"'
    for trial, says in (
        (replace(known, evaluation=None), r"^no finished evaluation of policy 1\.1\.0 \(.*: run one"),
        (replace(known, evaluation=missed), r"missed a threshold: 2 twins flip: mend it under a new version"),
        (replace(known, evaluation=replace(EVALUATION, passed=None, sentences=())), r"asked for no threshold: run one"),
        (replace(known, evaluation=None, open_evaluation=UUID(int=9)), rf"^evaluation {UUID(int=9)} .* wait for it"),
        (replace(known, evaluation=missed, open_evaluation=UUID(int=9)), r"has not finished: wait for it"),
    ):
        with pytest.raises(CommandRefused, match=rf"{says}.*{command}.*REASON"):
            promotion(trial, prompt, reason="")
        assert change(ramp(trial, prompt, 5, reason="")) == ("1.0.0", two(5))
        assert "it is urgent (replay " in str(promotion(trial, prompt, reason="it is urgent"))
    finished_before = replace(known, open_evaluation=UUID(int=9))
    assert isinstance(promotion(finished_before, prompt, reason=""), Change), "a second look takes nothing back"
    assert "2 twins flip" in str(promotion(replace(known, evaluation=missed), prompt, reason="it is urgent"))


def test_an_evaluation_by_other_rules_than_today_s_says_so(registry: Registry) -> None:
    known = replace(facts(registry), rules_sha256="b" * 64)
    prompt = replace(released(registry, "1.1.0"), key="policy")
    of = [replace(known, evaluation=replace(EVALUATION, rules_sha256=rules)) for rules in ("b" * 64, "a" * 64, "")]
    same, other, unknown = (str(promotion(one, prompt, reason="")) for one in of)
    assert "rules" not in same
    assert "rules" not in unknown
    assert "validity is 0.998; by other rules than today's (aaaaaaaaaaaa then, bbbbbbbbbbbb now)" in other
    alone = str(promotion(replace(of[1], rules_sha256=None), prompt, reason=""))
    assert "validity is 0.998; by rules aaaaaaaaaaaa, and there are none here to compare with" in alone
    missed = replace(EVALUATION, passed=False, sentences=("2 twins flip",), rules_sha256="a" * 64)
    with pytest.raises(CommandRefused, match=r"2 twins flip; by other rules than today's .*: mend it"):
        promotion(replace(known, evaluation=missed), prompt, reason="")
    assert "by other rules" in str(promotion(replace(known, evaluation=missed), prompt, reason="it is urgent"))


def test_what_lacks_both_is_told_of_both(registry: Registry) -> None:
    known = replace(facts(registry, replay=None), evaluation=None)
    rationale = replace(released(registry, "1.1.0"), key="rationale")
    with pytest.raises(
        CommandRefused, match=r"no finished replay of .*; no finished evaluation of .*grounded=0\.9.*REASON"
    ):
        promotion(known, rationale, reason="")
    said = str(promotion(known, rationale, reason="it is urgent"))
    assert "it is urgent (without a replay; without an evaluation)" in said


def test_a_ramp_gives_the_rest_to_the_version_in_force(registry: Registry) -> None:
    prompt = released(registry, "1.2.0")
    assert change(ramp(facts(registry), prompt, 5, reason="")) == ("1.0.0", two(5, "1.2.0"))
    promoted = facts(registry, row(1, "1.1.0"))
    assert change(ramp(promoted, prompt, 50, reason="")) == ("1.1.0", two(50, "1.2.0", "1.1.0"))
    running = facts(registry, row(1, "1.0.0", two(5, "1.2.0")))
    assert ramp(running, prompt, 5, reason="") == "verdict 1.2.0 has 5 % already: nothing to do"
    of_another_scale = facts(registry, buckets="verdict:1.0.0@3,1.2.0@1")
    assert isinstance(ramp(of_another_scale, prompt, 25, reason=""), str), "no new phase for the same shares"
    by_environment = facts(registry, buckets="verdict:1.2.0@1,1.0.0@3")
    assert change(ramp(by_environment, prompt, 50, reason="")) == ("1.0.0", (("1.2.0", 50.0), ("1.0.0", 50.0)))


def test_a_candidate_that_grows_keeps_its_units(registry: Registry) -> None:
    known, prompt = facts(registry), released(registry, "1.1.0")
    units = [Unit(f"T{number}", AT).name("ticker_day") for number in range(500)]
    had: set[str | None] = set()
    for number, percent in enumerate((1, 5, 10, 25, 50), start=1):
        version, arms = change(ramp(known, prompt, percent, reason=""))
        has = {unit for unit in units if pick(arms, point(KEY, str(unit))) == "1.1.0"}
        assert had <= has
        had = has
        known = facts(registry, row(number, version, arms))
    assert 200 < len(had) < 300


def test_less_than_a_candidate_has_needs_no_evidence(registry: Registry) -> None:
    known = facts(registry, row(1, "1.0.0", two(25)), replay=None)
    prompt = replace(released(registry, "1.1.0"), key="policy")
    assert change(ramp(known, prompt, 10, reason="")) == ("1.0.0", two(10))
    with pytest.raises(CommandRefused, match="no finished replay"):
        ramp(known, prompt, 50, reason="")


def test_a_ramp_takes_no_units_from_another_candidate(registry: Registry) -> None:
    known = facts(registry, row(1, "1.0.0", two(10)))
    with pytest.raises(CommandRefused, match=r"1\.0\.0 90 %, 1\.1\.0 10 %: end it first \(rollback verdict\)"):
        ramp(known, released(registry, "1.2.0"), 5, reason="")
    with pytest.raises(CommandRefused, match="is in force already"):
        ramp(known, released(registry, "1.0.0"), 5, reason="")


def test_what_a_guardrail_took_back_goes_again_only_for_a_reason(registry: Registry) -> None:
    prompt = released(registry, "1.1.0")
    taken = [row(1, "1.0.0", two(10)), row(2, "1.0.0", who="guardrail")]
    for rows in (taken, [*taken, row(3, "1.2.0")]):
        with pytest.raises(CommandRefused, match=r"a guardrail took verdict 1\.1\.0 back at 2026-03-02 03:02:00 UTC"):
            ramp(facts(registry, *rows), prompt, 1, reason="")
    assert isinstance(ramp(facts(registry, *taken), prompt, 1, reason="the engine was ill"), Change)
    mended = [*taken, row(3, "1.0.0", two(1))]
    assert isinstance(ramp(facts(registry, *mended), prompt, 5, reason=""), Change)
    by_hand = [row(1, "1.0.0", two(10)), row(2, "1.0.0", who="bob")]
    assert isinstance(ramp(facts(registry, *by_hand), prompt, 1, reason=""), Change)


@pytest.mark.parametrize(
    "ground",
    [
        Ground("1.0.0", {"arms": [["1.0.0", 90], ["1.1.0", 10]], "unit": "ticker_day"}, None),
        Ground("1.0.0", None, "1.0.0@90,1.1.0@10"),
    ],
)
def test_so_does_what_was_taken_back_from_an_experiment_of_file_or_environment(
    registry: Registry, ground: Ground
) -> None:
    known = replace(facts(registry), history=(row(1, "1.0.0", who="guardrail", ground=ground),))
    with pytest.raises(CommandRefused, match=r"a guardrail took verdict 1\.1\.0 back"):
        ramp(known, released(registry, "1.1.0"), 5, reason="")
    assert change(ramp(known, released(registry, "1.2.0"), 5, reason=""))[1] == two(5, "1.2.0")


ENVIRONMENT = Ground("1.0.0", None, "1.0.0@50,1.1.0@50")


def test_what_a_guardrail_took_back_on_another_ground_needs_a_reason_here_too(registry: Registry) -> None:
    prompt = released(registry, "1.1.0")
    taken = row(1, "1.0.0", who="guardrail", ground=ENVIRONMENT)
    with pytest.raises(CommandRefused, match=r"a guardrail took verdict 1\.1\.0 back"):
        ramp(facts(registry, taken), prompt, 1, reason="")
    for ground in (ENVIRONMENT, GROUND):
        answered = facts(registry, taken, row(2, "1.0.0", two(1), ground=ground), row(3, "1.0.0", ground=ground))
        assert isinstance(ramp(answered, prompt, 1, reason=""), Change)


def test_what_is_done_on_another_ground_does_not_answer_a_guardrail(registry: Registry) -> None:
    rows = (
        row(1, "1.0.0", two(10)),
        row(2, "1.0.0", two(1), ground=ENVIRONMENT),
        row(3, "1.0.0", who="guardrail"),
        row(4, "1.0.0", two(5), ground=ENVIRONMENT),
    )
    with pytest.raises(CommandRefused, match=r"a guardrail took verdict 1\.1\.0 back"):
        ramp(facts(registry, *rows), released(registry, "1.1.0"), 1, reason="")


def test_a_row_that_cannot_be_read_is_no_step_of_the_way(registry: Registry) -> None:
    broken = replace(row(2, "1.2.0"), problem="it is no good")
    known = facts(registry, row(1, "1.1.0"), broken)
    assert change(rollback(known, known=VERSIONS, reason="", further=False)) == ("1.0.0", ())
    taken = facts(
        registry, row(1, "1.0.0", two(10)), row(3, "1.0.0", who="guardrail"), replace(broken, version="1.1.0")
    )
    with pytest.raises(CommandRefused, match=r"a guardrail took verdict 1\.1\.0 back"):
        ramp(taken, released(registry, "1.1.0"), 1, reason="")
