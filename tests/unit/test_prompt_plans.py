"""What promote, ramp and rollback would write, and what they refuse: from facts alone."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from libs.llm.commands.evidence import FinishedReplay
from libs.llm.commands.plans import Change, Facts, promotion, ramp, rollback
from libs.llm.commands.refusal import CommandRefused
from libs.llm.experiments import Experiment, Unit, parse_buckets, pick, point
from libs.llm.in_force import Activation, Arms, Ground, in_force
from libs.llm.registry import Registry
from libs.llm.types import PromptVersion
from tests.unit.llm_cases import PROMPTS, write_prompts

AT = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
KEY = "verdict"
GROUND = Ground("1.0.0", None, None)
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
REPLAY = FinishedReplay(UUID(int=7), AT, 120, "3 of 120 decisions flip.")
THIRD = """    "1.2.0":
      <<: *verdict
      system: You judge entries twice. Answer with JSON.
"""


WORDING = PROMPTS.replace("note:\n", f"{THIRD}note:\n", 1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load_quietly(write_prompts(tmp_path, WORDING))


def row(number: int, version: str, arms: Arms = (), *, who: str = "ann", ground: Ground = GROUND) -> Activation:
    at = AT + timedelta(minutes=number)
    return Activation(number, KEY, version, arms, who=who, why=f"why {number}", ground=ground, at=at)


def facts(
    registry: Registry, *rows: Activation, replay: FinishedReplay | None = REPLAY, buckets: str = "", key: str = KEY
) -> Facts:
    """The facts after these activations, given oldest first."""
    newest = tuple(reversed(rows))
    now = in_force(registry, key, buckets=parse_buckets(buckets), activations=newest)
    return Facts(key=key, in_force=now, history=newest, replay=replay)


def released(registry: Registry, version: str, key: str = KEY) -> PromptVersion:
    return replace(registry.version(key, version), released_at=AT)


def two(share: float, candidate: str = "1.1.0", control: str = "1.0.0") -> Arms:
    return ((control, 100 - share), (candidate, share))


def change(found: Change | str) -> tuple[str, Arms]:
    assert isinstance(found, Change), found
    return found.version, found.arms


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
    with pytest.raises(CommandRefused, match=r"cannot be replayed.*REASON"):
        promotion(known, prompt, reason="")
    policy = replace(prompt, key="policy")
    with pytest.raises(CommandRefused, match=r"make replay SINCE=… PROMPT=policy VERSION=1\.1\.0.*REASON"):
        promotion(known, policy, reason="")
    with pytest.raises(CommandRefused, match=rf"replay {UUID(int=9)} of policy 1\.1\.0 has not finished"):
        ramp(replace(known, open_replay=UUID(int=9)), policy, 5, reason="")
    assert "it is urgent (without a replay)" in str(promotion(known, policy, reason="it is urgent"))
    assert f"it is urgent (replay {UUID(int=7)}" in str(promotion(facts(registry), policy, reason="it is urgent"))


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


AFTER_COMMIT = Ground("1.1.0", None, None)


@pytest.mark.parametrize(
    ("rows", "buckets", "goes_to"),
    [
        ([row(1, "1.0.0", two(10))], "", "1.0.0"),
        ([row(1, "1.1.0"), row(2, "1.1.0", two(5, "1.2.0", "1.1.0"))], "", "1.1.0"),
        ([], "verdict:1.0.0,1.1.0", "1.0.0"),
        ([row(1, "1.1.0")], "", "1.0.0"),
        ([row(1, "1.1.0"), row(2, "1.2.0")], "", "1.1.0"),
        ([row(1, "1.1.0"), row(2, "1.2.0"), row(3, "1.1.0"), row(4, "1.2.0")], "", "1.1.0"),
        ([row(1, "1.1.0"), row(2, "1.1.0", two(5, "1.2.0", "1.1.0")), row(3, "1.2.0")], "", "1.1.0"),
        ([row(1, "9.0.0"), row(2, "1.2.0")], "", "1.0.0"),
    ],
)
def test_a_rollback_ends_the_experiment_else_goes_back_before_the_last_promotion(
    registry: Registry, rows: Sequence[Activation], buckets: str, goes_to: str
) -> None:
    found = rollback(facts(registry, *rows, buckets=buckets), known=VERSIONS, reason="", further=False)
    assert change(found) == (goes_to, ())


@pytest.mark.parametrize(
    ("rows", "further"),
    [
        ([row(1, "1.1.0"), row(2, "1.0.0")], None),
        ([row(1, "1.1.0"), row(2, "1.2.0"), row(3, "1.1.0")], "1.0.0"),
        ([row(1, "1.1.0"), row(2, "1.1.0", two(5, "1.2.0", "1.1.0")), row(3, "1.1.0", who="guardrail")], "1.0.0"),
    ],
)
def test_what_went_back_last_goes_no_further_unless_told(
    registry: Registry, rows: Sequence[Activation], further: str | None
) -> None:
    known = facts(registry, *rows)
    said = rollback(known, known=VERSIONS, reason="", further=False)
    assert isinstance(said, str)
    assert f"went back already, by {rows[-1].who}" in said
    assert "--further" in said
    if further is None:
        with pytest.raises(CommandRefused, match="nothing to roll back"):
            rollback(known, known=VERSIONS, reason="", further=True)
    else:
        assert change(rollback(known, known=VERSIONS, reason="", further=True)) == (further, ())


def test_a_version_that_reached_the_file_can_be_taken_back_too(tmp_path: Path) -> None:
    adopted = WORDING.replace('version: "1.0.0"', 'version: "1.1.0"', 1)
    registry = Registry.load_quietly(write_prompts(tmp_path, adopted))
    known = facts(registry, row(1, "1.1.0"))
    assert known.in_force.source == "file"
    assert change(rollback(known, known=VERSIONS, reason="worse", further=False)) == ("1.0.0", ())
    back = facts(registry, row(1, "1.1.0"), row(2, "1.0.0", ground=AFTER_COMMIT))
    assert isinstance(rollback(back, known=VERSIONS, reason="", further=False), str)
    again = facts(registry, row(1, "1.1.0"), row(2, "1.2.0", ground=AFTER_COMMIT))
    assert change(rollback(again, known=VERSIONS, reason="", further=False)) == ("1.1.0", ())


def test_without_a_promotion_there_is_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(CommandRefused, match=r"nothing to roll back.*promote verdict VERSION.*1\.0\.0, 1\.1\.0"):
        rollback(facts(registry), known=VERSIONS, reason="", further=False)


def test_an_experiment_of_versions_none_of_which_is_in_force_ends_with_the_one_in_force(registry: Registry) -> None:
    known = facts(registry, buckets="verdict:1.1.0,1.2.0")
    assert isinstance(known.in_force.experiment, Experiment)
    assert change(rollback(known, known=VERSIONS, reason="", further=False)) == ("1.0.0", ())


def test_a_rollback_heeds_what_was_done_on_other_ground_only_before_its_own(registry: Registry) -> None:
    lagging = Ground("1.2.0", None, None)
    known = facts(registry, row(1, "1.1.0"), row(2, "1.2.0", ground=lagging))
    assert change(rollback(known, known=VERSIONS, reason="", further=False)) == ("1.0.0", ())
    done = facts(registry, row(1, "1.1.0"), row(2, "1.0.0", who="bob"), row(3, "1.2.0", ground=lagging))
    said = rollback(done, known=VERSIONS, reason="", further=False)
    assert isinstance(said, str)
    assert "went back already, by bob" in said


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
