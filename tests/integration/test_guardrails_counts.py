"""What guardrails count, whom they blame, and what they tell of shares and of strangers' experiments."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from libs.exposures import phases
from libs.exposures.looks import counted
from libs.exposures.record import note, note_judged
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.upstreams.errors import PromptTooLong
from services.jobs.guardrails import EVERY_S, LATELY_MIN, LOOKS_PER_COUNT, Guardrails
from tests.integration.guardrail_cases import (
    GOOD,
    INVALID,
    LATE,
    PROMPTS,
    SLOW,
    TENS,
    Came,
    Source,
    alerts,
    all_rows,
    by_hand,
    give,
    phase_of,
    planted,
    read,
    registry,
)
from tests.unit import judgement_cases
from tests.unit.llm_cases import write_prompts

__all__ = ["registry"]


async def kept(engine: AsyncEngine, arm: str, count: int, *, phase: str) -> None:
    """Valid answers from the reply cache."""
    await give(engine, arm, count=count, came=replace(GOOD, cached=True), phase=phase)


@pytest.mark.parametrize(("came", "asked"), [(LATE, 20), (INVALID, 20), (INVALID, 100), (SLOW, 100)])
async def test_what_all_arms_suffer_is_seen_though_the_control_has_answers_from_before(
    engine: AsyncEngine, registry: Registry, came: Came, asked: int
) -> None:
    """What is really asked fails at the same rate in both; only the control was asked before."""
    prompts = Prompts.build(registry, "policy:1.0.0@90,1.2.0@10")
    await kept(engine, "1.0.0", 900, phase=phase_of(prompts))
    for arm, count in (("1.0.0", 2 * asked), ("1.2.0", asked)):
        await give(engine, arm, count=count * 17 // 20 if asked > 20 else 0, phase=phase_of(prompts))
        await give(engine, arm, count=count * 3 // 20 if asked > 20 else count, came=came, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    assert await all_rows(engine) == []


async def test_answers_from_before_do_not_hide_a_candidate_that_fails_now(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    for arm in ("1.0.0", "1.2.0"):
        await kept(engine, arm, 1000, phase=phase_of(prompts))
        await give(engine, arm, count=50, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=50, came=LATE, phase=phase_of(prompts))
    await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert made.why.startswith("1.2.0, timeout_rate: 50 of 100 calls")


async def test_a_version_that_can_never_be_asked_is_taken_back(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    await give(engine, "1.0.0", count=30, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=Came(None, ms=None, allow=None), phase=phase_of(prompts))
    refused = judgement_cases.answer(
        "policy", None, arm="1.2.0", status="unavailable", error=f"{PromptTooLong.code}: 9,000 tokens", total_ms=1.0
    )
    async with engine.begin() as connection:
        ids = list(await connection.scalars(text("select forecast_id from exposures where arm = '1.2.0'")))
        asked = [note("policy", each, answer=refused) for each in ids[:15]]
        broken = [note("policy", each, answer=None, fault="InputsRefused: no ticker") for each in ids[15:]]
        await note_judged(connection, [one for one in (*asked, *broken) if one is not None])
    await Guardrails(engine, prompts).step()
    (made,) = await all_rows(engine)
    assert made.why.startswith("1.2.0, invalid_rate: 30 of 30 answers were invalid")
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    async with engine.connect() as connection:
        counts = await counted(connection, "policy", experiment)
    assert (counts["1.2.0"].judged, counts["1.2.0"].answered, counts["1.2.0"].slow) == (30, 0, 0)


async def test_what_breaks_at_one_key_is_raised_after_the_others_were_looked_at(
    engine: AsyncEngine, registry: Registry
) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    bad = prompts.in_force["policy"]
    assert bad.experiment is not None
    broken = replace(bad, experiment=replace(bad.experiment, guardrails={"p95_latency_ms": "no number"}))
    both = replace(prompts, in_force={"a": broken, "policy": bad})
    looking = Guardrails(engine, both)
    with capture_logs() as logs, pytest.raises(DBAPIError):
        await looking.step()
    assert [(line["prompt_key"], line["log_level"]) for line in logs if line["event"] == "guardrails_failed"] == [
        ("a", "error")
    ]
    assert [row.who for row in await all_rows(engine)] == ["guardrail"]
    with capture_logs() as logs, pytest.raises(DBAPIError):
        await looking.step()
    assert not [line for line in logs if line["event"] == "guardrails_failed"]  # the same is said once


async def test_an_activation_that_cannot_be_followed_here_stands(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry)
    await planted(engine, prompts)
    said = await by_hand(engine, prompts.in_force["policy"], version="1.3.0")
    here = await read(engine, registry)
    assert here.in_force["policy"].trouble is not None
    looking = Guardrails(engine, here)
    with capture_logs() as logs:
        for _ in range(3):
            await looking.step()
    assert [line["event"] for line in logs] == ["guardrails_off"]
    assert "1.3.0" in logs[0]["reason"]
    assert [row.id for row in await all_rows(engine)] == [said.id]


async def test_outcomes_that_come_after_all_units_are_checked_too(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    for arm in ("1.0.0", "1.2.0"):
        await give(engine, arm, count=100, phase=phase_of(prompts))  # every unit there is, from the first day on
    looking = Guardrails(engine, prompts)
    await looking.step()
    async with engine.begin() as connection:
        await connection.execute(text("update exposures set settled_at = now() where arm = '1.0.0'"))
    for _ in range(LOOKS_PER_COUNT):
        await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "sample_ratio"
    assert "at outcome" in words


async def test_one_unit_that_fails_again_and_again_is_one_failure(engine: AsyncEngine, registry: Registry) -> None:
    prompts = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    await give(engine, "1.0.0", count=200, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=170, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=30, came=INVALID, phase=phase_of(prompts))
    async with engine.begin() as connection:
        await connection.execute(TENS)  # three units of twenty fail, each ten times
    looking = Guardrails(engine, prompts)
    await looking.step()
    assert await all_rows(engine) == []
    await give(engine, "1.2.0", count=100, came=INVALID, phase=phase_of(prompts))
    await looking.step()
    (made,) = await all_rows(engine)
    assert "by units they tell as much as" in made.why


async def test_an_experiment_that_is_not_in_force_here_is_told_once(engine: AsyncEngine, registry: Registry) -> None:
    here = Prompts.build(registry)
    there = Prompts.build(registry, "policy:1.0.0@50,1.2.0@50")
    looking = Guardrails(engine, here)
    for prompts in (here, there):
        await give(engine, "1.0.0", count=3, phase=phase_of(prompts))
    with capture_logs() as logs:
        for _ in range(2 * LOOKS_PER_COUNT):
            await looking.step()
        assert await alerts(engine) == []  # processes may still be starting
        for _ in range(int(2 * LATELY_MIN * 60 / EVERY_S)):
            await looking.step()
    ((kind, words),) = await alerts(engine)
    assert kind == "unguarded"
    assert f"by {phase_of(there)}, and services.jobs knows of {phase_of(here)}" in words
    assert [line["phase"] for line in logs if line["event"] == "experiment_not_in_force_here"] == [phase_of(there)]


async def test_a_phase_that_was_in_force_here_until_lately_is_no_stranger(
    engine: AsyncEngine, registry: Registry
) -> None:
    live = Source(Prompts.build(registry))
    await give(engine, "1.0.0", count=3, phase=phase_of(live.now))
    looking = Guardrails(engine, live)
    rounds = int(2 * LATELY_MIN * 60 / EVERY_S)
    for _ in range(rounds):
        await looking.step()
    live.now = Prompts.build(registry, "policy:1.0.0")
    for _ in range(rounds - 1):
        await looking.step()
    assert await alerts(engine) == []
    for _ in range(LOOKS_PER_COUNT + 1):
        await looking.step()
    assert [kind for kind, _ in await alerts(engine)] == ["unguarded"]


@pytest.mark.parametrize(
    ("buckets", "arms"),
    [
        ("", (("1.0.0", 60.0), ("1.1.0", 20.0), ("1.2.0", 20.0))),
        ("policy:1.0.0@50,1.2.0@50", (("1.0.0", 50.0), ("1.2.0", 50.0))),
    ],
)
async def test_of_what_was_taken_back_the_control_and_the_weights_are_still_known(
    engine: AsyncEngine, tmp_path: Path, registry: Registry, buckets: str, arms: tuple[tuple[str, float], ...]
) -> None:
    before = Prompts.build(registry, buckets)
    ended = before.in_force["policy"].experiment
    assert ended is not None
    await give(engine, "1.0.0", count=30, phase=ended.phase)
    await give(engine, "1.2.0", count=40, came=INVALID, phase=ended.phase)  # more than the control has
    await Guardrails(engine, before).step()
    plain = "".join(line for line in PROMPTS.splitlines(keepends=True) if "experiment:" not in line)
    path = write_prompts(tmp_path, plain)
    later = await read(engine, Registry.load(path, path.with_suffix(".lock")))  # and both say something else by now
    assert later.in_force["policy"].ground != before.in_force["policy"].ground
    for now in (await read(engine, registry, buckets), later):
        async with engine.connect() as connection:
            asked = await phases.find(connection, now, "policy", ended.phase)
        assert (asked.state, asked.weighted, asked.experiment) == ("ended", True, ended)
        assert asked.experiment.arms == arms


async def test_of_versions_that_are_gone_only_what_was_given_is_known(
    engine: AsyncEngine, tmp_path: Path, registry: Registry
) -> None:
    before = Prompts.build(registry)
    await planted(engine, before)
    await Guardrails(engine, before).step()
    plain = "".join(line for line in PROMPTS.splitlines(keepends=True) if "1.2.0" not in line)
    path = write_prompts(tmp_path, plain)
    now = await read(engine, Registry.load(path, path.with_suffix(".lock")))
    async with engine.connect() as connection:
        asked = await phases.find(connection, now, "policy", phase_of(before))
    assert (asked.weighted, asked.experiment.control) == (False, "1.0.0")
    assert len(asked.experiment.arms) == 3
