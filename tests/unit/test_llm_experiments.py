"""Arms: GrowthBook's hash, the buckets' grammar, stability and split."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from growthbook import core
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.errors import ExperimentError, PromptFileError, UnknownPrompt
from libs.llm.experiments import Experiment, Experiments, Unit, fnv1a32, fnv1a32_of_digits, parse_buckets, pick, point
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from tests.unit.llm_cases import PROMPTS, write_prompts

NOON = datetime(2013, 1, 2, 12, tzinfo=UTC)
UNIT = Unit("AAPL", NOON)
weights = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=6).filter(lambda given: sum(given) > 0)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load_quietly(write_prompts(tmp_path))


@given(st.text())
def test_the_hash_is_growthbooks(text: str) -> None:
    assert fnv1a32(text) == core.fnv1a32(text)


@given(st.integers(0, 2**32 - 1) | st.integers(0, 2_000_000) | st.integers(1, 4294).map(lambda lead: lead * 10**6))
def test_digits_are_hashed_as_their_text(number: int) -> None:
    assert fnv1a32_of_digits(number) == core.fnv1a32(str(number))


@given(st.text(), st.text())
def test_the_point_is_growthbooks(seed: str, unit: str) -> None:
    assert point(seed, unit) == core.gbhash(seed, unit, 2)


@given(st.lists(st.integers(min_value=1, max_value=1000), min_size=1, max_size=6), st.text(max_size=12))
def test_the_arm_is_growthbooks(given_weights: list[int], unit: str) -> None:
    shares = [weight / sum(given_weights) for weight in given_weights]
    at = point("policy", unit)
    chosen = core.chooseVariation(at, core.getBucketRanges(len(shares), 1, shares))
    arms = tuple((f"{number}.0.0", float(weight)) for number, weight in enumerate(given_weights))
    assert pick(arms, at) == f"{chosen if chosen >= 0 else len(arms) - 1}.0.0"


@given(weights, st.floats(min_value=0, max_value=1, exclude_max=True))
def test_only_arms_with_weight_are_given(given_weights: list[float], at: float) -> None:
    arms = tuple((str(number), weight) for number, weight in enumerate(given_weights))
    assert dict(arms)[pick(arms, at)] > 0


def test_units_split_by_weight() -> None:
    experiment = parse_buckets("policy:1.0.0@90,1.1.0@10")["policy"]
    given_arms = [pick(experiment.arms, point("policy", f"T{number}|2013-01-02")) for number in range(20_000)]
    share = given_arms.count("1.1.0") / len(given_arms)
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(given_arms)) ** 0.5


@given(st.text(), st.integers(min_value=1, max_value=99), st.integers(min_value=0, max_value=100))
def test_widening_the_first_arm_moves_none_of_its_units(unit: str, first: int, more: int) -> None:
    before = pick((("a", first), ("b", 100 - first)), point("policy", unit))
    wider = min(100, first + more)
    after = pick((("a", wider), ("b", 100 - wider)), point("policy", unit))
    assert before == "b" or after == "a"


def test_equal_split_and_weights_are_read() -> None:
    found = parse_buckets(" policy : 1.0.0 , 1.1.0 ; note:v1@90,v2@10 ;")
    assert found == {
        "policy": Experiment((("1.0.0", 1.0), ("1.1.0", 1.0))),
        "note": Experiment((("v1", 90.0), ("v2", 10.0))),
    }
    assert parse_buckets("") == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("policy", "policy"),
        (":v1", "':v1'"),
        ("policy:", "''"),
        ("policy:v1,,v2", "''"),
        ("policy:v1@", "v1"),
        ("policy:v1@x", "'x'"),
        ("policy:v1@nan,v2@1", "v1"),
        ("policy:v1@1e308,v2@1e308", "v1"),
        ("policy:v1@-1,v2@1", "v1"),
        ("policy:v1@0,v2@0", "above 0"),
        ("policy:v1@1,v2", "every version"),
        ("policy:v1,v1", "v1"),
        ("policy:v1;policy:v2", "twice"),
        ("Policy:v1", "Policy"),
    ],
)
def test_unreadable_buckets_are_refused(text: str, named: str) -> None:
    with pytest.raises(ExperimentError, match="LLM_AB_BUCKETS") as caught:
        parse_buckets(text)
    assert named in str(caught.value)


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    try:
        found = parse_buckets(text)
    except ExperimentError:
        return
    assert all(sum(weight for _, weight in experiment.arms) > 0 for experiment in found.values())


def test_an_unknown_key_or_version_stops_the_start(registry: Registry) -> None:
    with pytest.raises(ExperimentError, match="'strategy'"):
        Prompts.build(registry, "strategy:1.0.0")
    with pytest.raises(ExperimentError, match=r"'verdict' has no version '2\.0\.0', only 1\.0\.0, 1\.1\.0"):
        Prompts.build(registry, "verdict:1.0.0,2.0.0")


def test_without_an_experiment_the_active_version_is_given(registry: Registry) -> None:
    arm = Prompts.build(registry).experiments.arm("verdict", UNIT)
    assert (arm.version, arm.name) == ("1.0.0", "")


def test_without_a_unit_the_active_version_is_given(registry: Registry) -> None:
    experiments = Prompts.build(registry, "verdict:1.1.0").experiments
    assert experiments.arm("verdict", None).name == ""
    assert experiments.arm("verdict", UNIT).name == "1.1.0"


def with_experiment(folder: Path, experiment: str) -> Registry:
    text = PROMPTS.replace(
        'verdict:\n  version: "1.0.0"\n', f'verdict:\n  version: "1.0.0"\n  experiment: {experiment}\n'
    )
    return Registry.load_quietly(write_prompts(folder, text))


def test_the_file_may_ask_for_an_experiment_and_the_buckets_win(tmp_path: Path) -> None:
    registry = with_experiment(
        tmp_path, '{arms: {"1.0.0": 0, "1.1.0": 1}, unit: ticker, guardrails: {invalid_rate: 0.1, timeout_rate: null}}'
    )
    assert Prompts.build(registry).experiments.arm("verdict", UNIT).version == "1.1.0"
    overruled = Prompts.build(registry, "verdict:1.0.0").experiments
    assert overruled.arm("verdict", UNIT).version == "1.0.0"
    running = overruled.running("verdict")
    assert running is not None
    assert running.unit == "ticker"
    assert running.guardrails == {
        "invalid_rate": 0.1,
        "timeout_rate": None,
        "p95_latency_ms": None,
        "deny_to_allow": 0.20,
    }


def test_metrics_are_those_that_are_named_else_all(tmp_path: Path) -> None:
    named = with_experiment(tmp_path, '{arms: {"1.0.0": 1}, metrics: {brier: 0.02}}')
    running = Prompts.build(named).experiments.running("verdict")
    assert running is not None
    assert running.metrics == {"brier": 0.02}
    silent = Prompts.build(with_experiment(tmp_path, '{arms: {"1.0.0": 1}}')).experiments.running("verdict")
    assert silent is not None
    assert silent.metrics is not None
    assert {"validity", "latency", "tokens", "deny_rate", "agreement", "brier"} < set(silent.metrics)


@pytest.mark.parametrize(
    ("experiment", "field"),
    [
        ("{guardrails: {invalid: 0.1}}", "experiment.guardrails.invalid"),
        ("{guardrails: {invalid_rate: 1.1}}", "experiment.guardrails.invalid_rate"),
        ("{guardrails: {timeout_rate: -0.1}}", "experiment.guardrails.timeout_rate"),
        ("{guardrails: {deny_to_allow: true}}", "experiment.guardrails.deny_to_allow"),
        ("{guardrails: {p95_latency_ms: 0}}", "experiment.guardrails.p95_latency_ms"),
        ("{guardrails: {p95_latency_ms: .inf}}", "experiment.guardrails.p95_latency_ms"),
        ("{guardrails: {invalid_rate: .nan}}", "experiment.guardrails.invalid_rate"),
        ("{guardrails: 1}", "experiment.guardrails"),
        ("{metrics: {profit: 1}}", "experiment.metrics.profit"),
        ("{metrics: {brier: 0}}", "experiment.metrics.brier"),
        ("{metrics: {brier: null}}", "experiment.metrics.brier"),
        ("{metrics: {latency: '9'}}", "experiment.metrics.latency"),
    ],
)
def test_unknown_names_and_impossible_bounds_are_refused(tmp_path: Path, experiment: str, field: str) -> None:
    body = experiment.replace("{", '{arms: {"1.0.0": 1}, ', 1)
    with pytest.raises(PromptFileError, match=f"key verdict, field {field}: "):
        with_experiment(tmp_path, body)


def test_units() -> None:
    late = datetime(2013, 1, 2, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    unit = Unit("AAPL", late, UUID(int=7))
    assert unit.name("ticker") == "AAPL"
    assert unit.name("ticker_day") == "AAPL|2013-01-03"
    assert unit.name("forecast") == "00000000-0000-0000-0000-000000000007"
    assert UNIT.name("forecast") is None


def test_a_tickers_day_keeps_its_arm_whenever_it_is_asked(registry: Registry) -> None:
    experiments = Prompts.build(registry, "verdict:1.0.0,1.1.0").experiments
    hours = {experiments.arm("verdict", Unit("AAPL", NOON + timedelta(hours=hour))) for hour in range(-12, 12)}
    assert len(hours) == 1
    days = {experiments.arm("verdict", Unit("AAPL", NOON + timedelta(days=day))).version for day in range(30)}
    assert days == {"1.0.0", "1.1.0"}


def test_an_assignment_says_what_was_drawn_by_and_in_which_phase() -> None:
    experiment = Experiment((("1.0.0", 1.0), ("1.1.0", 1.0)), phase="file-12345678", control="1.0.0")
    experiments = Experiments({"policy": "1.0.0", "note": "2.0.0"}, {"policy": experiment})
    given_arm = experiments.assign("policy", UNIT)
    assert given_arm == ("policy", "AAPL|2013-01-02", experiments.arm("policy", UNIT).version, "file-12345678")
    assert experiments.assign("note", UNIT) is None
    assert experiments.arm("note", UNIT).version == "2.0.0"
    with pytest.raises(UnknownPrompt, match="'absent'"):
        experiments.arm("absent", UNIT)


def test_a_unit_without_what_is_drawn_by_has_no_assignment() -> None:
    experiments = Experiments({"policy": "1.0.0"}, {"policy": Experiment((("1.1.0", 1.0),), unit="forecast")})
    assert experiments.assign("policy", UNIT) is None
    assert experiments.arm("policy", UNIT).version == "1.0.0"
    assert experiments.assign("policy", Unit("AAPL", NOON, UUID(int=7))) is not None


@given(weights, st.text(max_size=8), st.datetimes(timezones=st.just(UTC)))
def test_assignments_are_growthbooks_point_on_the_arms_shares(
    given_weights: list[float], ticker: str, as_of: datetime
) -> None:
    arms = tuple((str(number), weight) for number, weight in enumerate(given_weights))
    experiments = Experiments({}, {"policy": Experiment(arms)})
    assigned = experiments.assign("policy", Unit(ticker, as_of))
    assert assigned is not None
    assert assigned.arm == pick(arms, core.gbhash("policy", assigned.unit, 2) or 0.0)
    assert experiments.assign("policy", Unit(ticker, as_of)) == assigned
