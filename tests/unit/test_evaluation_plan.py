"""What a run asks: items by number, their order, and the plan on disk."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.running.plan import Pinned, PlanError, Prices, plan_from, read_plan
from tests.unit.evaluation_running_cases import POLICY, RATIONALE, plan_of

COUNTS = st.integers(min_value=1, max_value=9)


@given(cases=COUNTS, versions=st.integers(1, 3), repeat=COUNTS)
def test_every_case_version_and_repeat_is_one_item(cases: int, versions: int, repeat: int) -> None:
    pinned = tuple(Pinned("policy", f"1.{number}.0", "a") for number in range(versions))
    plan = plan_of(cases, versions=pinned, repeat=repeat)
    asked = {plan.item(item) for item in range(plan.items)}
    assert asked == {(case, pin, turn) for case in range(cases) for pin in pinned for turn in range(repeat)}
    assert len(asked) == plan.items


def test_the_number_of_an_item_is_fixed() -> None:
    plan = plan_of(3, versions=(POLICY, RATIONALE), repeat=4)
    assert plan.item((2 * 2 + 1) * 4 + 3) == (2, RATIONALE, 3)


@pytest.mark.parametrize("item", [-1, 5])
def test_there_are_no_other_items(item: int) -> None:
    with pytest.raises(IndexError, match=f"no item {item}"):
        plan_of(5).item(item)


@given(cases=COUNTS, repeat=COUNTS, seed=st.integers(0, 2**40))
def test_the_order_takes_every_item_once_and_follows_the_seed(cases: int, repeat: int, seed: int) -> None:
    plan = plan_of(cases, repeat=repeat, seed=seed)
    order = list(plan.order())
    assert sorted(order) == list(range(plan.items))
    assert order == list(plan.order())


def test_another_seed_is_another_order() -> None:
    plan = plan_of(100)
    assert list(plan.order()) != list(replace(plan, seed=plan.seed + 1).order())
    assert list(plan.order()) != list(range(100))


def test_versions_and_repeats_are_asked_interleaved() -> None:
    """Any tenth of the run holds about as much of each version and repeat: a drifting model meets all alike."""
    plan = plan_of(500, versions=(POLICY, RATIONALE), repeat=2)
    order = list(plan.order())
    for begin in range(0, plan.items, plan.items // 10):
        part = Counter(plan.item(item)[1:] for item in order[begin : begin + plan.items // 10])
        assert len(part) == 4
        assert min(part.values()) > 25  # 50 each are expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"repeat": 0}, "repeat"),
        ({"versions": ()}, "versions"),
        ({"versions": (POLICY, POLICY)}, "versions"),
        ({"cases": 0}, "cases"),
        ({"cases": 60_000_000}, "60,000,000 items"),
    ],
)
def test_a_plan_that_asks_nothing_or_too_much_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError, match=field):
        plan_of(**{"cases": 3, **changes})


def test_a_plan_survives_being_written() -> None:
    plan = plan_of(
        3,
        versions=(POLICY, RATIONALE),
        prices=Prices(0.5, 1.5, 2.0),
        rate=12.5,
        concurrency=4,
        thresholds=("validity=0.98", "flips=0"),
        stamp={"commit": "abc", "packages": {"numpy": "2"}, "dirty": True},
    )
    assert plan_from(orjson.loads(orjson.dumps(plan.document()))) == plan


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("repeat", "1", "repeat"),
        ("cases", 1.5, "cases"),
        ("evaluation_id", "x", "evaluation_id"),
        ("versions", [{"prompt": "policy", "version": "1.0.0"}], r"versions\.0\.hash"),
        ("made_at", "yesterday", "made_at"),
        ("versions", [], "versions"),
    ],
)
def test_a_plan_that_cannot_be_read_names_the_field(tmp_path: Path, field: str, value: Any, named: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(orjson.dumps(plan_of(3).document() | {field: value}))
    with pytest.raises(PlanError, match=rf"plan\.json: {named}: "):
        read_plan(path)


def test_a_missing_or_torn_plan_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PlanError, match=r"plan\.json is missing"):
        read_plan(path)
    path.write_text('{"name": ')
    with pytest.raises(PlanError, match=r"plan\.json cannot be read"):
        read_plan(path)


def test_a_later_plan_may_say_more() -> None:
    document = plan_of(3).document() | {"colour": "blue"}
    assert plan_from(document).made_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_order_is_not_the_sample_of_another_use_of_the_seed() -> None:
    """The order comes from a generator of its own: drawing elsewhere in between changes nothing."""
    plan = plan_of(50)
    before = list(plan.order())
    random.seed(1)
    assert list(plan.order()) == before
