"""What must hold of a summary for any rows, and what a long run may cost."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.evaluation.figures.estimates import Figure
from libs.evaluation.figures.summary import summarise
from libs.evaluation.figures.version import QUANTILES
from libs.evaluation.running.plan import Plan, Prices
from libs.evaluation.running.row import Row
from tests.unit.evaluation_figure_rows import (
    POLICY_ONE,
    POLICY_TWO,
    RATIONALE_ONE,
    Simulated,
    Ways,
    plan_of,
    row_of,
    silent,
    simulated,
)

SHARES = st.floats(0, 1).map(lambda share: round(share, 2))
WAYS = st.builds(
    Ways, answered=SHARES, invalid=SHARES, repaired=SHARES, wrongly_allowed=SHARES, wrongly_blocked=SHARES,
    ungrounded=SHARES, flips=SHARES, between=SHARES, cached=SHARES,
)  # fmt: skip
MADE = st.builds(Simulated, clean=st.integers(1, 12), masked=st.integers(0, 4), hostile=st.integers(0, 4))
ASKED = ("validity=0.6", "answered=0.6", "flips=1", "caught=0.3", "masked_agreement=0.2", "grounded=0.3")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run of two versions of policy and a rationale, of which the last rows may be missing."""

    made: Simulated
    ways: tuple[Ways, Ways, Ways]
    repeat: int
    rate: float | None
    prices: Prices | None
    seed: int
    there: float

    @property
    def plan(self) -> Plan:
        """Its plan."""
        versions = (POLICY_ONE, POLICY_TWO, RATIONALE_ONE)
        return plan_of(
            versions,
            cases=self.made.cases,
            repeat=self.repeat,
            rate=self.rate,
            thresholds=ASKED,
            prices=self.prices,
        )

    def rows(self) -> list[Row]:
        """The rows that are there."""
        rows = list(simulated(self.plan, self.made, ways=self.ways, seed=self.seed))
        return rows[: round(self.there * len(rows))]


RUNS = st.builds(
    Drawn,
    made=MADE,
    ways=st.tuples(WAYS, WAYS, WAYS),
    repeat=st.integers(1, 3),
    rate=st.none() | st.just(2.0),
    prices=st.none() | st.just(Prices(1.0, 2.0, 3.0)),
    seed=st.integers(0, 1_000),
    there=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)


def summary_of(rows: list[Row], plan: Plan) -> dict[str, Any]:
    return summarise(rows, plan, missing=plan.items - len(rows), elapsed_s=9.0).document()


def figures_in(found: Any) -> Iterator[dict[str, Any]]:
    """Every figure, wherever it stands."""
    if isinstance(found, dict):
        if set(found) == set(Figure.__slots__):  # pyright: ignore[reportUnknownArgumentType]
            yield found
        yield from chain.from_iterable(figures_in(each) for each in found.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    elif isinstance(found, list):
        yield from chain.from_iterable(figures_in(each) for each in found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


@given(RUNS)
@settings(max_examples=30, deadline=None)
def test_every_figure_lies_within_its_interval_and_its_bounds(run: Drawn) -> None:
    plan, rows = run.plan, run.rows()
    document = summary_of(rows, plan)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    for figure in figures_in(document):
        assert figure["n"] > 0
        for end, sign in (("low", 1), ("high", -1)):
            if figure[end] is not None:
                assert sign * (figure["value"] - figure[end]) >= -1e-12
        if figure["unit"] == "rate":
            assert -1 <= figure["low"] <= figure["high"] <= 1


@given(RUNS)
@settings(max_examples=30, deadline=None)
def test_counts_add_up(run: Drawn) -> None:
    plan, rows = run.plan, run.rows()
    document = summary_of(rows, plan)
    assert document["run"]["rows"] + document["run"]["missing"] == plan.items
    for version in document["versions"]:
        figures = version["figures"]
        if not figures["validity"]:
            continue
        answered = figures["validity"]["n"]
        assert figures["answered"]["value"] * version["asked"] == pytest.approx(answered)
        if at_once := figures["first_validity"]:  # of what did not come from the cache
            assert at_once["value"] * at_once["n"] <= figures["validity"]["value"] * answered + 1e-9
        if version["prompt"] == "policy":
            assert sum(version["confusion"].values()) == answered
            decided = figures["allow_rate"]["value"] + figures["deny_rate"]["value"]
            assert decided == pytest.approx(figures["validity"]["value"])
    for pair in document["pairs"]:
        differing = pair["only_first_allows"] + pair["only_second_allows"]
        if pair["cases"]:
            assert pair["agree"]["value"] == pytest.approx(1 - differing / pair["cases"])
    for found in document["hostile"]:
        assert found["deny_to_allow"] + found["allow_to_deny"] <= found["pairs"]
        assert sum(each["pairs"] for each in found["by_attack"].values()) == found["pairs"]


@given(RUNS)
@settings(max_examples=30, deadline=None)
def test_passed_says_what_the_thresholds_say_and_nothing_unfinished_passes(run: Drawn) -> None:
    plan, rows = run.plan, run.rows()
    document = summary_of(rows, plan)
    passed = [each["passed"] for each in document["thresholds"]]
    assert document["passed"] == all(passed)
    if len(rows) < plan.items:
        assert not any(passed)
    for each in document["thresholds"]:
        if each["passed"] and each["name"] != "flips":
            assert each["lower"] >= each["asked"]
    assert {each["name"] for each in document["thresholds"]} == {asked.partition("=")[0] for asked in ASKED}


def alike(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two figures are the same, but for the last digits: sums over more clusters are added in another order."""
    if one is None or other is None:
        return one is other
    ends = [(one[end], other[end]) for end in ("value", "low", "high")]
    same = all(left is right or (left is not None and left == pytest.approx(right, rel=1e-9)) for left, right in ends)
    return same and (one["n"], one["unit"]) == (other["n"], other["unit"])


@given(RUNS, st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_what_got_no_answer_changes_nothing_but_what_was_answered(run: Drawn, more: int) -> None:
    plan, rows = run.plan, run.rows()
    longer = replace(plan, cases=plan.cases + more)
    added = [
        silent(longer, case, version, repeat)
        for case in range(plan.cases, longer.cases)
        for version in range(3)
        for repeat in range(plan.repeat)
    ]
    before, after = summary_of(rows, plan), summary_of(rows + added, longer)
    for one, other in zip(before["versions"], after["versions"], strict=True):
        timed = set(QUANTILES) if plan.rate else set[str]()  # at planned moments no answer is the slowest of all
        for name in one["figures"].keys() - {"answered"} - timed:
            assert alike(one["figures"][name], other["figures"][name]), name
        for name in timed:
            earlier, later = one["figures"][name], other["figures"][name]
            assert later is None or (earlier is not None and later["value"] >= earlier["value"])
    assert before["pairs"] == after["pairs"]
    assert before["hostile"] == after["hostile"]


@given(RUNS)
@settings(max_examples=20, deadline=None)
def test_one_more_hit_never_lowers_a_rate(run: Drawn) -> None:
    plan, rows = run.plan, run.rows()
    broken = next((row for row in rows if row.status == "invalid" and not row.twin), None)
    if broken is None:
        return
    mended = [replace(row, status="ok", error=None) if row is broken else row for row in rows]
    before, after = (
        next(
            version["figures"]["validity"]
            for version in summary_of(each, plan)["versions"]
            if (version["prompt"], version["version"]) == (broken.prompt, broken.version)
        )
        for each in (rows, mended)
    )
    assert after["value"] > before["value"]


def test_a_long_run_takes_little_memory_however_long_its_texts() -> None:
    """20,000 rows of 2,000 characters each: kept as they are they take 40 MB, and their objects as much again."""
    plan = plan_of(cases=20_000)

    def rows() -> Iterator[Row]:
        shared = row_of(plan, 0, allow=True, target=False, made=-0.01, won=False)
        words = "The desk may enter, as no rule is broken. " * 47
        for at in range(20_000):
            yield replace(shared, item=at, case=f"case-{at}", text=f"{at} {words}")

    tracemalloc.start()
    try:
        document = summarise(rows(), plan, missing=0, elapsed_s=1.0).document()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert document["versions"][0]["confusion"]["wrongly_allowed"] == 20_000
    assert len(document["worst"]) == 40
    assert peak < 20e6
