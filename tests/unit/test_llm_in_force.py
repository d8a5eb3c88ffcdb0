"""What is in force: the latest activation on unchanged ground, else the environment, else the file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from libs.llm.errors import ExperimentError
from libs.llm.experiments import GUARDRAILS, METRICS, UNIT_KINDS, Experiment, parse_buckets
from libs.llm.in_force import (
    Activation,
    Arms,
    Ground,
    InForce,
    arms_as_text,
    check_buckets,
    experiment_as_json,
    ground_of,
    in_force,
)

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "2.0.0")
KEY = "policy"
AT = datetime(2013, 1, 2, tzinfo=UTC)

shares = st.one_of(st.integers(1, 100).map(float), st.floats(min_value=1e-6, max_value=1e6))
arms_of = st.lists(st.tuples(st.sampled_from(VERSIONS), shares), min_size=1, unique_by=lambda arm: arm[0]).map(tuple)
bounds = st.dictionaries(st.sampled_from(sorted(GUARDRAILS)), st.one_of(st.none(), st.floats(0, 1)))
worths = st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(min_value=1e-9, max_value=1e3))
experiments = st.builds(
    Experiment,
    arms=arms_of,
    unit=st.sampled_from(UNIT_KINDS),
    guardrails=st.none() | bounds,
    metrics=st.none() | worths,
)


@dataclass(frozen=True, slots=True)
class File:
    """A prompts' file with one key."""

    version: str
    asked: Experiment | None = None
    known: tuple[str, ...] = VERSIONS
    words: str = "hash of "

    def keys(self) -> tuple[str, ...]:
        return (KEY,)

    def versions(self, key: str) -> Mapping[str, Any]:
        return {version: SimpleNamespace(sha256=f"{self.words}{version}") for version in self.known}

    def active(self, key: str) -> Any:
        return SimpleNamespace(version=self.version)

    def experiment(self, key: str) -> Experiment | None:
        return self.asked


@dataclass(frozen=True, slots=True)
class Said:
    """What file and environment say."""

    file: File
    env: Arms

    @property
    def buckets(self) -> dict[str, Experiment]:
        return {KEY: Experiment(self.env)} if self.env else {}

    @property
    def ground(self) -> Ground:
        return ground_of(self.file, KEY, self.buckets)

    def in_force(self, *activations: Activation) -> InForce:
        """With these activations, newest first."""
        return in_force(self.file, KEY, buckets=self.buckets, activations=activations)


files = st.builds(File, version=st.sampled_from(VERSIONS), asked=st.none() | experiments)
said_things = st.builds(Said, file=files, env=st.just(()) | arms_of)


def activation_on(ground: Ground, version: str = "1.1.0", arms: Arms = (), number: int = 17) -> Activation:
    return Activation(number, KEY, version, arms, "ada", "because", ground, AT)


def through_json(value: Any) -> Any:
    """As Postgres gives it back."""
    return json.loads(json.dumps(value))


@given(said_things)
def test_without_an_activation_the_environment_rules_and_then_the_file(said: Said) -> None:
    found = said.in_force()
    assert (found.version, found.trouble, found.activation) == (said.file.version, None, None)
    assert found.source == ("environment" if said.env else "file")
    expected = said.env or (() if said.file.asked is None else said.file.asked.arms)
    assert (() if found.experiment is None else found.experiment.arms) == expected


@given(said_things, st.sampled_from(VERSIONS), st.just(()) | arms_of)
def test_an_activation_rules_on_its_ground_over_file_and_environment(said: Said, version: str, arms: Arms) -> None:
    activation = activation_on(said.ground, version, arms)
    found = said.in_force(activation)
    assert (found.source, found.version, found.activation) == ("activation", version, activation)
    if found.experiment is None:
        assert arms == ()
    else:
        assert (found.experiment.arms, found.experiment.phase) == (arms, "activation-17")


@given(said_things, said_things)
def test_an_activation_rules_until_its_ground_changes_and_again_when_it_is_changed_back(then: Said, now: Said) -> None:
    activation = activation_on(then.ground)
    found = now.in_force(activation)
    if now.ground.agrees_with(then.ground):
        assert found.source == "activation"
    else:
        assert found == replace(now.in_force(), activation=activation, last=activation)
    assert then.in_force(activation).source == "activation"


@given(said_things)
def test_any_of_the_three_changes_the_ground(said: Said) -> None:
    activation = activation_on(said.ground)
    other = next(version for version in VERSIONS if version != said.file.version)
    asked = said.file.asked
    more = (
        Experiment((("2.0.0", 3.0),)) if asked is None else replace(asked, arms=(*asked.arms[:-1], ("2.0.0", 1234.5)))
    )
    changes = [
        replace(said, file=replace(said.file, version=other)),
        replace(said, file=replace(said.file, asked=more)),
        replace(said, env=(("1.0.0", 1234.5),)),
    ]
    for changed in changes:
        assert changed.in_force(activation).source != "activation"


@given(said_things)
def test_the_ground_is_the_same_after_a_visit_to_the_database(said: Said) -> None:
    ground = said.ground
    back = replace(ground, file_experiment=through_json(ground.file_experiment))
    assert back == ground
    assert said.in_force(activation_on(back)).source == "activation"


@given(experiments)
def test_the_order_of_arms_is_ground_too(experiment: Experiment) -> None:
    turned = replace(experiment, arms=experiment.arms[::-1])
    assume(turned.arms != experiment.arms)
    assert experiment_as_json(turned) != experiment_as_json(experiment)
    assert not Said(File("1.0.0", turned), ()).ground.agrees_with(Said(File("1.0.0", experiment), ()).ground)


@given(said_things, arms_of)
def test_the_order_of_arms_is_kept(said: Said, arms: Arms) -> None:
    found = said.in_force(activation_on(said.ground, "1.0.0", arms))
    assert found.experiment is not None
    assert found.experiment.arms == arms


@given(arms_of)
def test_arms_as_text_are_read_back(arms: Arms) -> None:
    assert parse_buckets(f"{KEY}:{arms_as_text(arms)}")[KEY].arms == arms


def test_arms_are_written_as_people_write_them() -> None:
    assert arms_as_text((("1.0.0", 90.0), ("1.1.0", 9.5))) == "1.0.0@90,1.1.0@9.5"
    assert experiment_as_json(Experiment((("1.0.0", 90.0), ("1.1.0", 10.0)))) == {
        "arms": [["1.0.0", 90], ["1.1.0", 10]],
        "unit": "ticker_day",
    }


@given(said_things, st.just(()) | arms_of)
def test_unit_guardrails_and_metrics_are_always_the_files(said: Said, arms: Arms) -> None:
    for found in (said.in_force(), said.in_force(activation_on(said.ground, "1.0.0", arms))):
        if found.experiment is None:
            continue
        asked = said.file.asked if said.file.asked is not None else Experiment(())
        assert found.experiment.unit == asked.unit
        assert found.experiment.guardrails == {**GUARDRAILS, **(asked.guardrails or {})}
        assert found.experiment.metrics == (asked.metrics or METRICS)


@given(said_things, arms_of, st.sampled_from(VERSIONS))
def test_the_control_is_the_version_in_force_else_the_first_arm(said: Said, arms: Arms, version: str) -> None:
    experiment = said.in_force(activation_on(said.ground, version, arms)).experiment
    assert experiment is not None
    assert experiment.control == (version if version in dict(arms) else arms[0][0])


@given(experiments, experiments)
def test_a_phase_is_named_by_arms_and_unit(first: Experiment, second: Experiment) -> None:
    one, other = (Said(File("1.0.0", experiment), ()).in_force().experiment for experiment in (first, second))
    assert one is not None
    assert other is not None
    assert one.phase.startswith("file-")
    assert (one.phase == other.phase) == ((first.arms, first.unit) == (second.arms, second.unit))


@given(said_things)
def test_a_draft_that_is_edited_in_place_begins_a_new_phase(said: Said) -> None:
    before = said.in_force().experiment
    edited = replace(said, file=replace(said.file, words="other words of ")).in_force().experiment
    assert (None if before is None else before.arms) == (None if edited is None else edited.arms)
    assert before is None or edited is None or before.phase != edited.phase


@given(said_things, experiments)
def test_guardrails_and_metrics_are_no_ground(said: Said, edited: Experiment) -> None:
    """To edit a bound must not undo a rollback."""
    asked = said.file.asked
    assume(asked is not None)
    assert asked is not None
    bounds_edited = replace(asked, guardrails=edited.guardrails, metrics=edited.metrics)
    after = replace(said, file=replace(said.file, asked=bounds_edited))
    activation = activation_on(said.ground, "1.1.0")
    assert after.in_force(activation).source == "activation"
    assert after.in_force(activation).experiment is None
    assert after.ground.file_experiment == experiment_as_json(bounds_edited), "the record keeps them"
    other_unit = replace(asked, unit=next(unit for unit in UNIT_KINDS if unit != asked.unit))
    moved = replace(said, file=replace(said.file, asked=other_unit))
    assert moved.in_force(activation).source != "activation"


@given(said_things, said_things, st.sampled_from(VERSIONS))
def test_what_was_activated_on_another_ground_touches_nothing(said: Said, other: Said, version: str) -> None:
    assume(not said.ground.agrees_with(other.ground))
    ours = activation_on(said.ground, "1.0.0", number=17)
    theirs = activation_on(other.ground, version, number=18)
    found = said.in_force(theirs, ours)
    assert found == replace(said.in_force(ours), last=theirs)
    assert (found.activation, found.last_id) == (ours, 18)
    assert other.in_force(theirs, ours).activation == theirs
    assert said.in_force().last_id is None


def test_of_two_on_the_same_ground_the_later_one_rules() -> None:
    said = Said(File("1.0.0"), ())
    first, second = activation_on(said.ground, "1.1.0", number=1), activation_on(said.ground, "1.2.0", number=2)
    assert said.in_force(second, first).version == "1.2.0"


@given(said_things)
def test_a_row_that_cannot_be_read_is_told_of_and_passed_over(said: Said) -> None:
    good = activation_on(said.ground, "1.1.0", number=17)
    broken = replace(activation_on(said.ground, "1.2.0", number=18), problem="it is no good")
    found = said.in_force(broken, good)
    trouble = "activation 18 of policy is not followed: it is no good"
    assert found == replace(said.in_force(good), trouble=trouble, last=broken)
    alone = said.in_force(broken)
    assert alone == replace(said.in_force(), trouble=trouble, activation=broken, last=broken)
    mended = activation_on(said.ground, "1.0.0", number=19)
    after = said.in_force(mended, broken, good)
    assert (after.trouble, after.activation) == (None, mended)


def test_phases_have_fixed_names() -> None:
    asked = Experiment((("1.0.0", 90.0), ("1.1.0", 10.0)))
    named = [Said(File("1.0.0", asked), env).in_force().experiment for env in ((), asked.arms)]
    assert [None if one is None else one.phase for one in named] == ["file-40bff7dc", "environment-40bff7dc"]


@pytest.mark.parametrize(
    ("version", "arms", "named"),
    [
        ("9.9.9", (), "version 9.9.9"),
        ("1.0.0", (("1.0.0", 1.0), ("9.9.9", 1.0)), "version 9.9.9"),
        ("1.0.0", (("1.0.0", 1.0), ("1.0.0", 1.0)), "named twice"),
        ("1.0.0", (("1.0.0", 0.0),), "above 0"),
    ],
)
def test_an_activation_that_cannot_be_followed_is_not_and_says_so(version: str, arms: Arms, named: str) -> None:
    said = Said(File("1.0.0", Experiment((("1.0.0", 1.0),))), ())
    activation = activation_on(said.ground, version, arms)
    found = said.in_force(activation)
    assert replace(found, trouble=None) == replace(said.in_force(), activation=activation, last=activation)
    assert found.trouble is not None
    assert found.trouble.startswith("activation 17 of policy is not followed: ")
    assert named in found.trouble


def test_an_activation_on_old_ground_is_no_trouble_whatever_it_names() -> None:
    activation = activation_on(Said(File("1.1.0"), ()).ground, "9.9.9")
    assert Said(File("1.0.0"), ()).in_force(activation).trouble is None


def test_buckets_must_name_what_exists() -> None:
    check_buckets(File("1.0.0"), parse_buckets("policy:1.0.0,2.0.0"))
    with pytest.raises(ExperimentError, match="there is no prompt 'note'"):
        check_buckets(File("1.0.0"), parse_buckets("note:1.0.0"))
    with pytest.raises(ExperimentError, match="'policy' has no version '3'"):
        check_buckets(File("1.0.0"), parse_buckets("policy:1.0.0,3"))
