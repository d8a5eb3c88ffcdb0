"""Guardrails on a real Postgres: a bad version is taken back once, by one of many, never against a person's word."""

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.exposures.counts import unit_counts
from libs.exposures.looks import counted
from libs.llm.activations import activate
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from services.jobs.guardrails import LOOKS_PER_COUNT, Guardrails
from tests.integration.guardrail_cases import (
    AWAY,
    GOOD,
    INVALID,
    LATE,
    LETS,
    SLOW,
    Came,
    alerts,
    all_rows,
    by_hand,
    give,
    phase_of,
    planted,
    read,
    registry,
    second,
)

__all__ = ["registry", "second"]


@pytest.mark.parametrize(
    ("came", "name"),
    [
        (INVALID, "invalid_rate"),
        (LATE, "timeout_rate"),
        (SLOW, "p95_latency_ms"),
        (LETS, "deny_to_allow"),
    ],
)
async def test_what_breaks_a_guardrail_is_taken_back_and_its_share_goes_to_the_active_version(
    engine: AsyncEngine, registry: Registry, came: Came, name: str
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, came)
    with capture_logs() as logs:
        await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert (made.who, made.version, made.arms) == ("guardrail", "1.0.0", (("1.0.0", 80.0), ("1.1.0", 20.0)))
    assert made.why.startswith(f"1.2.0, {name}: ")
    told = next(line for line in logs if line["event"] == "guardrail_took_back")
    assert (told["prompt_key"], told["versions"], told["arms"]) == ("policy", ["1.2.0"], "1.0.0@80,1.1.0@20")
    ((kind, words),) = await alerts(engine)
    assert kind == "guardrail"
    assert "version 1.2.0 was taken back and 1.0.0 is given instead" in words
    assert name in words
    after = await read(engine, registry)
    assert after.in_force["policy"].source == "activation"
    assert phase_of(after) == f"activation-{made.id}"


async def test_two_processes_that_see_it_at_once_take_it_back_once(
    engine: AsyncEngine, second: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    looking = [Guardrails(each, prompts) for each in (engine, second) for _ in range(4)]
    made = await asyncio.gather(*(each.take_back("policy", prompts.in_force["policy"]) for each in looking))
    assert sum(each is not None for each in made) == 1
    assert len(await all_rows(engine)) == 1
    assert len(await alerts(engine)) == 1
    for each in looking:  # and with what they knew before, they do not do it again
        await each.step()
    assert len(await all_rows(engine)) == 1
    assert len(await alerts(engine)) == 1


async def test_once_it_is_read_nothing_more_is_done(engine: AsyncEngine, registry: Registry) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    await Guardrails(engine, before).step()
    after = await read(engine, registry)
    await give(engine, "1.2.0", count=40, came=INVALID, phase=phase_of(before))  # calls that were on their way
    await Guardrails(engine, after).step()
    assert len(await all_rows(engine)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.1.0", "arms": ()},
        {"version": "1.0.0", "arms": (("1.0.0", 60.0), ("1.2.0", 40.0))},
        {"version": "1.2.0", "arms": ()},
    ],
)
async def test_a_persons_word_in_between_stands(
    engine: AsyncEngine, registry: Registry, change: dict[str, Any]
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    said = await by_hand(engine, prompts.in_force["policy"], **change)
    assert await Guardrails(engine, prompts).take_back("policy", prompts.in_force["policy"]) is None
    assert [row.id for row in await all_rows(engine)] == [said.id]
    assert await alerts(engine) == []


async def test_a_person_and_a_guardrail_at_the_same_moment_wait_for_each_other(
    engine: AsyncEngine, second: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    found = prompts.in_force["policy"]
    async with second.begin() as connection:
        said = await activate(
            connection, key="policy", version="1.1.0", arms=(), who="ann", why="mine", ground=found.ground
        )
        assert said is not None
        late = asyncio.create_task(Guardrails(engine, prompts).take_back("policy", found))
        await asyncio.wait({late}, timeout=0.3)
        assert not late.done()
    assert await late is None
    assert [row.id for row in await all_rows(engine)] == [said.id]


async def test_after_a_persons_word_the_new_phase_is_judged_by_its_own_exposures(
    engine: AsyncEngine, registry: Registry
) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    arms = (("1.0.0", 50.0), ("1.2.0", 50.0))
    said = await by_hand(engine, before.in_force["policy"], version="1.0.0", arms=arms)
    again = await read(engine, registry)
    await Guardrails(engine, again).step()
    assert [row.id for row in await all_rows(engine)] == [said.id]
    await give(engine, "1.0.0", count=30, phase=phase_of(again))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(again))
    await Guardrails(engine, again).step()
    (made, kept) = await all_rows(engine)
    assert (made.who, made.version, made.arms, kept.id) == ("guardrail", "1.0.0", (), said.id)
    assert (await read(engine, registry)).in_force["policy"].experiment is None


async def test_the_arms_of_the_environment_are_taken_back_too(engine: AsyncEngine, registry: Registry) -> None:
    buckets = "policy:1.0.0@50,1.2.0@50"
    prompts = Prompts.build(registry, buckets)
    await give(engine, "1.0.0", count=30, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    found = (await read(engine, registry, buckets)).in_force["policy"]
    assert (found.source, found.version, found.experiment) == ("activation", "1.0.0", None)


@pytest.mark.parametrize("came", [INVALID, LATE, SLOW, AWAY])
async def test_what_all_arms_suffer_takes_none_back(engine: AsyncEngine, registry: Registry, came: Came) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, GOOD)
    for arm, count in (("1.0.0", 90), ("1.1.0", 30), ("1.2.0", 30)):
        await give(engine, arm, count=count, came=came, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_a_model_that_is_away_blames_nobody_even_where_it_hits_one_arm_only(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts, AWAY)
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_nothing_runs_so_nothing_is_done(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0")
    await give(engine, "1.2.0", count=40, came=INVALID, phase=phase_of(prompts))
    with capture_logs() as logs:
        await Guardrails(engine, prompts).step()
    assert (await all_rows(engine), logs) == ([], [])


async def test_shares_that_chance_does_not_explain_are_told_once_for_each_check(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    phase = phase_of(prompts)
    settled = Came(settled=True)
    for arm, count in (("1.0.0", 300), ("1.1.0", 100), ("1.2.0", 100)):
        await give(engine, arm, count=count, came=settled, phase=phase)
    looking = Guardrails(engine, prompts)
    await looking.step()
    assert await alerts(engine) == []
    await give(engine, "1.2.0", count=300, came=Came(), phase=phase)  # too many, and their outcome never comes
    for _ in range(LOOKS_PER_COUNT * 2):
        await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "sample_ratio"
    assert f"at assignment the arms of {phase} do not have the shares" in words
    await give(engine, "1.0.0", count=900, came=settled, phase=phase)
    for each in (looking, Guardrails(engine, prompts)):  # the other one is a process that started anew
        for _ in range(LOOKS_PER_COUNT + 1):
            await each.step()
    said = await alerts(engine)
    assert [kind for kind, _ in said] == ["sample_ratio", "sample_ratio"]
    assert "at outcome" in said[1][1]
    assert await all_rows(engine) == []


async def test_counts_are_by_arm_and_leave_out_what_nobody_is_to_blame_for(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    phase = phase_of(prompts)
    waiting = Came(status=None, ms=None, allow=None)
    for came in (GOOD, GOOD, INVALID, LATE, SLOW, LETS, AWAY, waiting, Came("skipped", ms=None, allow=None)):
        await give(engine, "1.2.0", count=1, came=came, phase=phase)
    await give(engine, "1.0.0", count=5, phase=phase)
    await give(engine, "1.2.0", count=7, came=INVALID, phase="another")
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    async with engine.connect() as connection:
        counts = await counted(connection, "policy", experiment)
        units = await unit_counts(connection, "policy", phase)
    mine = counts["1.2.0"]
    assert (mine.judged, mine.invalid, mine.timed_out) == (6, 1, 1)
    assert (mine.answered, mine.slow, mine.decided, mine.allowed) == (5, 1, 5, 1)
    assert (counts["1.0.0"].judged, counts["1.0.0"].decided, counts["1.0.0"].allowed) == (5, 5, 0)
    assert (units["1.2.0"].assigned, units["1.2.0"].settled) == (9, 0)
    assert mine.units == {}  # 20 points are allowed and the arms are not further apart, so units are not counted
