"""What rollback would write, and what it refuses: from facts alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from libs.llm.commands.plans import rollback
from libs.llm.commands.refusal import CommandRefused
from libs.llm.experiments import Experiment
from libs.llm.in_force import Activation, Ground
from libs.llm.registry import Registry
from tests.unit.llm_cases import write_prompts
from tests.unit.plan_cases import VERSIONS, WORDING, change, facts, plan_registry, row, two


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return plan_registry(tmp_path)


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
