"""Guardrails: what breaks one, what does not, and how often one that is kept is called broken."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.exposures.counts import ArmCounts, UnitSums
from libs.exposures.evidence import (
    LEAST_WITHOUT_CONTROL,
    MOST_EVIDENCE,
    independent,
    turned_beyond,
    worse_than_both,
)
from libs.exposures.guardrails import ALPHA, NEEDED, GuardrailState, arms_without, evaluate, to_weigh
from libs.llm.experiments import GUARDRAILS, Experiment

HALVES = (("1.0.0", 50.0), ("1.1.0", 50.0))
RUNS = 400


def experiment(arms: tuple[tuple[str, float], ...] = HALVES, **guardrails: float | None) -> Experiment:
    return Experiment(arms, guardrails=guardrails, phase="p", control="1.0.0")


def look(
    control: ArmCounts | None, candidate: ArmCounts | None, /, **guardrails: float | None
) -> dict[str, GuardrailState]:
    """Every guardrail of 1.1.0 by its name."""
    counts = {each.arm: each for each in (control, candidate) if each is not None}
    return {state.name: state for state in evaluate(experiment(HALVES, **guardrails), counts)}


def judged(arm: str, n: int, *, invalid: int = 0, timed_out: int = 0) -> ArmCounts:
    return ArmCounts(arm, judged=n, invalid=invalid, timed_out=timed_out)


def decided(arm: str, n: int, allowed: int, *, each: int = 1) -> ArmCounts:
    """Decisions by units of `each` that are all alike."""
    units = UnitSums(n // each, n * each, allowed * each, allowed * each)
    return ArmCounts(arm, judged=n, decided=n, allowed=allowed, units={"deny_to_allow": units})


def allowed_of(counts: ArmCounts) -> tuple[int, int]:
    """What the decisions of an arm are worth."""
    return independent(counts.allowed, counts.decided, counts.units.get("deny_to_allow"))


def test_each_candidate_with_weight_is_held_to_each_guardrail_that_is_on() -> None:
    arms = (("1.0.0", 60.0), ("1.1.0", 20.0), ("1.2.0", 20.0), ("1.3.0", 0.0))
    states = evaluate(experiment(arms, timeout_rate=None, p95_latency_ms=800.0), {})
    assert [(state.arm, state.name) for state in states] == [
        (arm, name) for arm in ("1.1.0", "1.2.0") for name in ("invalid_rate", "p95_latency_ms", "deny_to_allow")
    ]
    assert all(not state.breached and state.observed is None for state in states)
    assert {state.bound for state in states} == {GUARDRAILS["invalid_rate"], 800.0, GUARDRAILS["deny_to_allow"]}


def test_a_breach_says_what_was_seen_and_what_was_allowed() -> None:
    found = look(judged("1.0.0", 40), judged("1.1.0", 20, invalid=18))["invalid_rate"]
    assert found.breached
    assert (found.observed, found.n, found.bound) == (0.9, 20, 0.05)
    assert found.sentence.startswith(
        "1.1.0, invalid_rate: 18 of 20 answers were invalid (90.0%), of the control 0 of 40 (0.0%); 5.0% are allowed"
    )
    assert f"where {NEEDED:g} is enough" in found.sentence


@pytest.mark.parametrize(
    ("name", "bad", "bounds"),
    [
        ("invalid_rate", judged("1.1.0", 30, invalid=15), {}),
        ("timeout_rate", judged("1.1.0", 30, timed_out=20), {}),
        ("p95_latency_ms", ArmCounts("1.1.0", judged=30, answered=30, slow=20), {"p95_latency_ms": 800.0}),
        ("deny_to_allow", decided("1.1.0", 60, 58), {}),
    ],
)
def test_one_guardrail_breaks_and_the_others_are_kept(name: str, bad: ArmCounts, bounds: dict[str, float]) -> None:
    control = ArmCounts("1.0.0", judged=60, answered=60, decided=60, allowed=15)
    control = replace(control, units={"deny_to_allow": UnitSums(60, 60, 15, 15)})
    found = look(control, bad, **bounds)
    assert [state.name for state in found.values() if state.breached] == [name]
    assert not any(state.breached for state in look(control, bad, **{name: None}).values())


@pytest.mark.parametrize("n", [5, 50, 5_000])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_what_the_control_suffers_as_well_breaks_nothing(n: int, share: float) -> None:
    """An outage of the model hits both arms, however much of it there is."""
    hits = round(n * share)
    for its in (n, 9 * n):
        control = judged("1.0.0", its, timed_out=round(its * share), invalid=0)
        assert not look(control, judged("1.1.0", n, timed_out=hits))["timeout_rate"].breached


def test_a_candidate_that_is_worse_than_a_bad_control_is_told_apart() -> None:
    control = judged("1.0.0", 900, invalid=180)
    assert not look(control, judged("1.1.0", 100, invalid=25))["invalid_rate"].breached
    assert look(control, judged("1.1.0", 100, invalid=60))["invalid_rate"].breached


def test_a_control_without_data_excuses_the_first_and_not_all() -> None:
    few = LEAST_WITHOUT_CONTROL - 1
    assert not look(None, judged("1.1.0", few, invalid=few))["invalid_rate"].breached
    assert look(None, judged("1.1.0", few + 1, invalid=few + 1))["invalid_rate"].breached
    assert not look(None, judged("1.1.0", few + 1, invalid=1))["invalid_rate"].breached


@pytest.mark.parametrize(("bound", "breaks"), [(0.0, True), (1.0, False)])
def test_bounds_at_the_ends_can_be_held_to(bound: float, breaks: bool) -> None:
    found = look(judged("1.0.0", 50), judged("1.1.0", 50, invalid=50), invalid_rate=bound)["invalid_rate"]
    assert found.breached is breaks


@given(
    hits=st.integers(0, 300), n=st.integers(0, 300), its_hits=st.integers(0, 300), its_n=st.integers(0, 300),
    bound=st.floats(0.01, 0.9),
)  # fmt: skip
def test_evidence_has_bounds_and_a_control_only_ever_excuses(
    hits: int, n: int, its_hits: int, its_n: int, bound: float
) -> None:
    hits, its_hits = min(hits, n), min(its_hits, its_n)
    found = worse_than_both((hits, n), (its_hits, its_n), bound=bound)
    assert 0 <= found <= MOST_EVIDENCE
    at_best = worse_than_both((hits, n), (0, 10**6), bound=bound)
    assert found <= max(at_best * (1 + 1e-9), 1.0)


@given(
    hits=st.integers(0, 200), n=st.integers(0, 200), its_hits=st.integers(0, 200), its_n=st.integers(0, 200),
    bound=st.floats(0.0, 1.0),
)  # fmt: skip
def test_what_is_within_the_bound_is_no_evidence_of_more(
    hits: int, n: int, its_hits: int, its_n: int, bound: float
) -> None:
    hits, its_hits = min(hits, n), min(its_hits, its_n)
    found = turned_beyond((hits, n), (its_hits, its_n), bound=bound)
    assert 0 <= found <= MOST_EVIDENCE
    if not n or not its_n or hits / n - its_hits / its_n <= bound:
        assert found <= 1


@given(hits=st.integers(0, 60), more=st.integers(1, 60), bound=st.floats(0.02, 0.5))
def test_one_more_hit_is_never_less_evidence(hits: int, more: int, bound: float) -> None:
    n = hits + more
    fewer = worse_than_both((hits, n), (2, 60), bound=bound)
    if fewer > 1:  # what is no evidence at all is not measured any further
        assert worse_than_both((hits + 1, n), (2, 60), bound=bound) >= fewer * (1 - 1e-6)


@pytest.mark.parametrize(("allowed", "breaks"), [(20, False), (50, False), (65, False), (90, True), (100, True)])
def test_turning_denies_into_allows_counts_beyond_what_is_allowed(allowed: int, breaks: bool) -> None:
    found = look(decided("1.0.0", 200, 60), decided("1.1.0", 100, allowed))["deny_to_allow"]
    assert found.breached is breaks
    assert found.observed == pytest.approx(allowed / 100 - 0.3)


def test_decisions_of_one_unit_count_once() -> None:
    assert allowed_of(decided("1.1.0", 400, 240)) == (240, 400)
    assert allowed_of(decided("1.1.0", 400, 240, each=10)) == pytest.approx((24, 40), abs=1.5)
    assert allowed_of(decided("1.1.0", 400, 400, each=10)) == (40, 40)
    assert independent(240, 400, None) == (0, 0)
    control = decided("1.0.0", 400, 100, each=10)
    assert look(control, decided("1.1.0", 400, 400, each=10))["deny_to_allow"].breached
    assert not look(control, decided("1.1.0", 400, 240, each=10))["deny_to_allow"].breached
    assert look(decided("1.0.0", 400, 100), decided("1.1.0", 400, 240))["deny_to_allow"].breached


@pytest.mark.parametrize("bound", [0.0, 1e-9, 0.99999, 0.999999, 0.9999985, 0.9999995, 0.9999999, 1.0])
def test_a_bound_near_its_ends_is_held_to_and_breaks_nothing_else(bound: float) -> None:
    assert 0 <= turned_beyond((100, 100), (1, 100), bound=bound) <= MOST_EVIDENCE
    assert 0 <= worse_than_both((100, 100), (5, 100), bound=bound) <= MOST_EVIDENCE


def by_units(arm: str, failing: int, others: int, *, each: int) -> ArmCounts:
    """Units of `each` answers, of which some never validate and the others always do."""
    n, invalid, units = (failing + others) * each, failing * each, failing + others
    sums = UnitSums(units, units * each**2, failing * each**2, failing * each**2)
    return ArmCounts(arm, judged=n, invalid=invalid, units={"invalid_rate": sums})


def test_what_fails_again_and_again_in_one_unit_counts_once() -> None:
    """Three of forty units never validate: of each 50 answers that is plain, of 40 units it is chance."""
    control, candidate = by_units("1.0.0", 0, 300, each=50), by_units("1.1.0", 3, 37, each=50)
    blind = [replace(one, units={}) for one in (control, candidate)]
    assert look(*blind)["invalid_rate"].breached
    assert to_weigh(experiment(), {one.arm: one for one in blind}) == {"invalid_rate"}
    found = look(control, candidate)["invalid_rate"]
    assert not found.breached
    assert (found.n, found.observed) == (2000, 0.075)
    assert found.sentence.endswith("by units they tell as much as 2 of 39 independent ones")
    assert look(control, by_units("1.1.0", 5, 0, each=50))["invalid_rate"].breached


def test_units_are_only_counted_where_they_can_break_a_guardrail() -> None:
    counts = {one.arm: one for one in (judged("1.0.0", 900, invalid=9), judged("1.1.0", 100, invalid=6))}
    assert to_weigh(experiment(), counts) == set()
    apart = {one.arm: replace(one, units={}) for one in (decided("1.0.0", 50, 10), decided("1.1.0", 50, 25))}
    assert to_weigh(experiment(), apart) == {"deny_to_allow"}


@pytest.mark.parametrize(("unit", "hard"), [("ticker", 0.08), ("ticker_day", 0.04)])
def test_units_that_never_validate_whatever_the_version_take_nothing_back(unit: str, hard: float) -> None:
    """Both arms are one version, and a unit either validates at each of its twenty forecasts or at none."""
    rng = np.random.default_rng(7)
    broken = 0
    for _ in range(RUNS // 2):
        candidate = rng.random(50 if unit == "ticker" else 400) < 0.2
        fails = rng.random(len(candidate)) < hard
        for seen in range(10, len(candidate) + 1, 10):
            mine, bad = candidate[:seen], fails[:seen]
            arms = [
                by_units(arm, int((bad & given).sum()), int((~bad & given).sum()), each=20)
                for arm, given in (("1.0.0", ~mine), ("1.1.0", mine))
            ]
            broken += look(*arms, timeout_rate=None, deny_to_allow=None)["invalid_rate"].breached
    assert broken / (RUNS // 2) <= ALPHA, f"{broken}"


@pytest.mark.parametrize(
    ("arms", "gone", "active", "left"),
    [
        (HALVES, {"1.1.0"}, "1.0.0", ()),
        ((("1.0.0", 80), ("1.1.0", 10), ("1.2.0", 10)), {"1.1.0"}, "1.0.0", (("1.0.0", 90), ("1.2.0", 10))),
        ((("1.0.0", 80), ("1.1.0", 10), ("1.2.0", 10)), {"1.1.0", "1.2.0"}, "1.0.0", ()),
        ((("1.1.0", 50), ("1.2.0", 50)), {"1.2.0"}, "1.0.0", (("1.1.0", 50), ("1.0.0", 50))),
        ((("1.0.0", 90), ("1.1.0", 10), ("1.2.0", 0)), {"1.1.0"}, "1.0.0", ()),
    ],
)
def test_what_is_left_gives_the_share_to_the_active_version_and_promotes_nobody(
    arms: tuple[tuple[str, float], ...], gone: set[str], active: str, left: tuple[tuple[str, float], ...]
) -> None:
    assert arms_without(arms, gone, active=active) == left


def ever_broken(name: str, counts: list[tuple[ArmCounts, ArmCounts]], **guardrails: float | None) -> bool:
    return any(look(control, candidate, **guardrails)[name].breached for control, candidate in counts)


def grown(rng: np.random.Generator, rate: float, *, share: float, looks: int, each: int) -> list[tuple[int, int]]:
    """Hits and members of an arm at every look."""
    members = rng.binomial(each, share, looks)
    hits = rng.binomial(members, rate)
    return list(zip(np.cumsum(hits).tolist(), np.cumsum(members).tolist(), strict=True))


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(("rate", "looks"), [(0.05, 100), (0.3, 25)])
def test_rates_no_worse_than_the_bound_or_the_control_are_hardly_ever_called_broken(
    rate: float, looks: int, share: float
) -> None:
    """At the bound both arms are as bad as is allowed; at 0.3 both are worse, so that the control must excuse."""
    rng = np.random.default_rng(5)
    broken = 0
    for _ in range(RUNS):
        control = grown(rng, rate, share=1 - share, looks=looks, each=20)
        candidate = grown(rng, rate, share=share, looks=looks, each=20)
        seen = [
            (judged("1.0.0", n1, invalid=h1), judged("1.1.0", n2, invalid=h2))
            for (h1, n1), (h2, n2) in zip(control, candidate, strict=True)
        ]
        broken += ever_broken("invalid_rate", seen, timeout_rate=None, deny_to_allow=None)
    assert broken / RUNS <= ALPHA, f"{broken} of {RUNS}"


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_flips_that_are_just_allowed_are_hardly_ever_called_too_many(share: float) -> None:
    rng = np.random.default_rng(7)
    broken = 0
    for _ in range(RUNS):
        control = grown(rng, 0.4, share=1 - share, looks=60, each=20)
        candidate = grown(rng, 0.6, share=share, looks=60, each=20)
        seen = [
            (decided("1.0.0", n1, h1), decided("1.1.0", n2, h2))
            for (h1, n1), (h2, n2) in zip(control, candidate, strict=True)
            if n1 and n2
        ]
        broken += ever_broken("deny_to_allow", seen, invalid_rate=None, timeout_rate=None)
    assert broken / RUNS <= ALPHA, f"{broken} of {RUNS}"


@pytest.mark.parametrize(("invalid", "most"), [(1.0, 10), (0.5, 25), (0.2, 120)])
def test_a_bad_version_is_found_soon(invalid: float, most: int) -> None:
    """Half of the units each, looked at after each: at the median, so many answers of the candidate are enough."""
    rng = np.random.default_rng(11)
    needed: list[int] = []
    for _ in range(25):
        hits = 0
        for n in range(1, 400):
            hits += int(rng.random() < invalid)
            if look(judged("1.0.0", n), judged("1.1.0", n, invalid=hits), deny_to_allow=None)["invalid_rate"].breached:
                needed.append(n)
                break
    assert len(needed) == 25
    assert sorted(needed)[12] <= most
